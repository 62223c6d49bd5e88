"""Reading a header: what scanners send, right and wrong, becomes plain values, and no complaint names a patient."""

from __future__ import annotations

import logging
import os
import threading
import unicodedata
import warnings
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from dicom_node.headers import (
    HEADER_TAGS,
    Code,
    Equipment,
    HeaderError,
    Patient,
    Sides,
    SourceHeader,
    Study,
    read_header,
    read_header_file,
)
from tests.part10 import CR, UIDS, part10

NAMES = {
    # The first two are the examples of PS3.5, H.3.1 and I.2.
    "japanese": (
        rb"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "korean": (
        rb"\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    # "春" is 0x3D55 in JIS X 0208, and 0x3D is the "=" between groups.
    "japanese with an equals sign inside": (
        rb"\ISO 2022 IR 87",
        b"Haru^Ko=\x1b$B=U\x1b(B^\x1b$B;R\x1b(B",
        "Haru^Ko=春^子",
    ),
    "chinese": (b"GB18030", b"Wang^XiaoDong=" + "王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    # The second byte of "乗" is 0x5C, a backslash.
    "chinese with a backslash inside": (b"GB18030", "乗^A".encode("gb18030"), "乗^A"),
    "latin": (b"ISO_IR 100", "Buc^Jérôme".encode("latin-1"), "Buc^Jérôme"),
    "cyrillic": (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
    "utf-8": (b"ISO_IR 192", "Wang^XiaoDong=王^小東=".encode(), "Wang^XiaoDong=王^小東"),
    "undeclared utf-8": (b"", "Buc^Jérôme".encode(), "Buc^Jérôme"),
    "undeclared latin": (b"", "Buc^Jérôme".encode("latin-1"), "Buc^Jérôme"),
    "declared utf-8, sent as latin": (b"ISO_IR 192", "Buc^Jérôme".encode("latin-1"), "Buc^Jérôme"),
    "declared as nothing known": (b"NO_SUCH_SET", b"Doe^Jane", "Doe^Jane"),
    # No text in Latin-1 holds the second byte of this letter.
    "declared latin, sent as utf-8": (b"ISO_IR 100", "Łukasz".encode(), "Łukasz"),
    "declared ascii, sent as utf-8": (b"ISO_IR 6", "Buc^Jérôme".encode(), "Buc^Jérôme"),
    "undeclared windows": (b"", "Šimek^Žofie".encode("cp1252"), "Šimek^Žofie"),
    "undeclared, with escape sequences": (b"", b"Yamada=\x1b$B;3ED\x1b(B", "Yamada=山田"),
    "declared latin, with escape sequences": (b"ISO_IR 100", b"J\xe9=\x1b$B;3ED\x1b(B", "Jé=山田"),
    "an escape sequence of no set that is known": (b"ISO_IR 100", b"Doe\x1b$(~^Jane", "Doe^Jane"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_is_read_in_its_character_set_with_all_its_groups(case: str) -> None:
    declared, raw, expected = NAMES[case]
    header = read_header_file(part10({"SpecificCharacterSet": declared, "PatientName": raw}))
    assert header.patient.name == expected


# Where the declaration was wrong, pydicom's first look has already lost what cannot be decoded.
@pytest.mark.parametrize("case", [case for case in NAMES if not case.startswith(("declared utf-8", "an escape"))])
def test_a_name_that_was_looked_at_before_is_read_the_same(case: str) -> None:
    declared, raw, expected = NAMES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(part10({"SpecificCharacterSet": declared, "PatientName": raw}))
        _ = str(dataset.PatientName)
    assert read_header(dataset).patient.name == expected


def test_undeclared_text_is_read_in_the_default_character_set_of_its_source() -> None:
    file = part10({"PatientName": "Иванов".encode("iso8859_5")})
    assert read_header_file(file, default_charset="ISO_IR 144").patient.name == "Иванов"


def test_a_declared_character_set_goes_before_the_default_of_its_source() -> None:
    file = part10({"SpecificCharacterSet": b"ISO_IR 100", "PatientName": b"J\xe9r\xf4me"})
    assert read_header_file(file, default_charset="ISO_IR 144").patient.name == "Jérôme"


TERMS = [
    *("", "ISO_IR 6", "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 126", "ISO_IR 127", "ISO_IR 138"),
    *("ISO_IR 144", "ISO_IR 148", "ISO_IR 166", "ISO_IR 203", "ISO_IR 13", "ISO_IR 192", "GB18030", "GBK"),
    *("\\ISO 2022 IR 87", "\\ISO 2022 IR 149", "\\ISO 2022 IR 58", "ISO 2022 IR 13\\ISO 2022 IR 159", "NO_SUCH_SET"),
]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("case", NAMES)
def test_a_wrong_declaration_or_setting_never_leaves_a_replacement_character(case: str, term: str) -> None:
    raw = NAMES[case][1]
    declared = read_header_file(part10({"SpecificCharacterSet": term.encode(), "PatientName": raw}))
    undeclared = read_header_file(part10({"PatientName": raw}), default_charset=term)
    for header in (declared, undeclared):
        assert header.patient.name
        assert "\ufffd" not in header.patient.name


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=60), st.sampled_from(TERMS), st.sampled_from(TERMS))
def test_no_bytes_leave_a_replacement_or_control_character(raw: bytes, declared: str, default: str) -> None:
    values = {"SpecificCharacterSet": declared.encode(), "PatientName": raw, "PatientID": raw, "StudyDescription": raw}
    header = read_header_file(part10(values), default_charset=default)
    text = header.patient.name + header.patient.id + header.study.description
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") or sign == "\ufffd" for sign in text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"PatientBirthDate": b"20261332"}, ("PatientBirthDate",)),
        ({"PatientSex": b"X", "StudyTime": b"noon", "StudyDate": b"20260101"}, ("PatientSex", "StudyTime")),
        ({"ImageLaterality": b"X", "Laterality": b"left!"}, ("ImageLaterality", "Laterality")),
        ({"TimezoneOffsetFromUTC": b"MEZ", "ViewPosition": b"a.p."}, ("TimezoneOffsetFromUTC", "ViewPosition")),
        ({"PatientName": b"M\xfcller"}, ("SpecificCharacterSet",)),
        ({"SpecificCharacterSet": b"ISO_IR 192", "PatientName": b"M\xfcller"}, ("SpecificCharacterSet",)),
        ({"SpecificCharacterSet": b"ISO_IR 100", "PatientName": b"M\xfcller"}, ()),
        ({"PatientName": "Müller".encode(), "PatientBirthDate": b"", "PatientSex": b"  "}, ()),
    ],
)
def test_what_was_sent_and_cannot_be_used_is_named_by_its_keyword(
    values: dict[str, bytes], expected: tuple[str, ...]
) -> None:
    header = read_header_file(part10(values))
    assert header.unusable == expected
    assert SourceHeader.from_json(header.to_json()) == header


def test_an_item_without_a_character_set_has_that_of_its_data_set() -> None:
    dataset = instance()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "X", "99L", "Genou à face"
    dataset.ProcedureCodeSequence = [item]
    assert read_header(stored(dataset)).study.procedure_codes == (Code("X", "99L", "Genou à face"),)


@pytest.mark.parametrize("keyword", UIDS)
def test_an_instance_without_one_of_its_uids_is_refused(keyword: str) -> None:
    without = {name: value for name, value in UIDS.items() if name != keyword}
    with pytest.raises(HeaderError, match=f"{keyword} is missing"):
        read_header_file(part10({}, uids=without))
    with pytest.raises(HeaderError, match=f"{keyword} is missing"):
        read_header_file(part10({keyword: b""}))


@pytest.mark.parametrize("value", [b"1.2.x", b"1..2", b".1", b"1.", b"1" * 65, b"Doe^Jane", rb"1.2\1.3"])
@pytest.mark.parametrize("keyword", UIDS)
def test_an_instance_with_a_uid_that_is_none_is_refused_without_repeating_it(keyword: str, value: bytes) -> None:
    with pytest.raises(HeaderError) as caught:
        read_header_file(part10({keyword: value}))
    assert str(caught.value) == f"{keyword} is not a valid UID"
    assert caught.value.__cause__ is None


def test_a_uid_with_a_leading_zero_is_let_through_as_scanners_send_them() -> None:
    assert read_header_file(part10({"SeriesInstanceUID": b"1.2.03"})).series_instance_uid == "1.2.03"


def test_a_header_with_nothing_but_uids_is_empty_and_no_error() -> None:
    expected = SourceHeader(CR.decode(), "1.2.4", "1.2.5", "1.2.3")
    assert read_header_file(part10({})) == expected
    empty = {name: b"" for name in HEADER_TAGS if name not in UIDS}
    assert read_header_file(part10(empty)) == expected


def test_invalid_values_are_left_out() -> None:
    header = read_header_file(
        part10(
            {
                "PatientBirthDate": b"around 1950",
                "PatientSex": b"U",
                "StudyDate": b"20260230",
                "StudyTime": b"25:00",
                "Rows": b"123",
                "Columns": b"",
                "NumberOfFrames": b"many",
                "SeriesNumber": b"99999999999",
                "InstanceNumber": b"1.5",
                "Laterality": b"X",
                "TimezoneOffsetFromUTC": b"UTC",
            }
        )
    )
    assert replace(header, unusable=()) == SourceHeader(CR.decode(), "1.2.4", "1.2.5", "1.2.3")


def test_old_forms_of_dates_and_times_and_small_letters_are_understood() -> None:
    header = read_header_file(
        part10(
            {"StudyDate": b"1997.03.14", "StudyTime": b"09:15:06.5", "BodyPartExamined": b"hand ", "PatientSex": b"f"}
        )
    )
    assert (header.study.date, header.study.time) == ("19970314", "091506.5")
    assert (header.body_part_examined, header.patient.sex) == ("HAND", "F")


@pytest.mark.parametrize(
    ("image", "series", "expected"),
    [(b"L", b"R", "L"), (b"", b"R", "R"), (b"B", b"", "B"), (b"?", b"L", "L"), (b"U", b"L", "U"), (b"", b"", "")],
)
def test_the_laterality_of_the_image_goes_before_that_of_the_series(image: bytes, series: bytes, expected: str) -> None:
    assert read_header_file(part10({"ImageLaterality": image, "Laterality": series})).laterality == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"CHEST, PA", "CHEST  PA"), (b"hand/wrist", "HAND WRIST"), (rb"HAND\WRIST", "HAND WRIST"), (b"\xd7?", "")],
)
def test_a_body_part_that_is_no_code_string_keeps_its_words(value: bytes, expected: str) -> None:
    kept = read_header_file(part10({"BodyPartExamined": value})).body_part_examined
    assert kept.split() == expected.split()


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (b"ISO_IR 100", "Hüfte".encode("latin-1"), "HUFTE"),
        (b"ISO_IR 192", "Muñeca".encode(), "MUNECA"),
        (b"", "Fuß".encode("latin-1"), "FUSS"),
        (b"", "ÉPAULE".encode(), "EPAULE"),
    ],
)
def test_a_body_part_keeps_its_letters_without_their_accents(declared: bytes, value: bytes, expected: str) -> None:
    values = {"SpecificCharacterSet": declared, "BodyPartExamined": value}
    assert read_header_file(part10(values)).body_part_examined == expected


# --- age, animals and sides ---------------------------------------------------------------------------------------


def test_the_age_is_read_from_the_age_string_and_from_the_dates() -> None:
    assert read_header_file(part10({"PatientAge": b"017Y"})).age == 17
    born = {"PatientBirthDate": b"20080307"}
    assert read_header_file(part10(born)).age is None
    for keyword in ("StudyDate", "AcquisitionDate", "ContentDate"):
        assert read_header_file(part10({**born, keyword: b"20260307"})).age == 18
    assert read_header_file(part10({**born, "StudyDate": b"20260307", "PatientAge": b"003M"})).age == 0.25


@pytest.mark.parametrize(
    "values",
    [
        {"PatientSpeciesDescription": b"Canine"},
        {"PatientSpeciesDescription": b"Non-human primate"},
        {"PatientBreedDescription": b"Beagle"},
        {"PatientSexNeutered": b"ALTERED"},
        {"PatientSexNeutered": b"unaltered "},
        {"ResponsiblePersonRole": b"OWNER"},
        {"PatientSpeciesDescription": b"HUMAN", "PatientBreedDescription": b"Beagle"},
        {"PatientSpeciesDescription": b"not human"},
        {"PatientSpeciesDescription": b"non Homo sapiens"},
        {"PatientSpeciesDescription": b"Adult dog"},
        {"PatientSpeciesDescription": b"Person", "PatientBreedDescription": b"No pedigree"},
        {"PatientSpeciesDescription": b"C. lupus familiaris"},
        {"PatientSpeciesDescription": "犬".encode(), "SpecificCharacterSet": b"ISO_IR 192"},
    ],
)
def test_one_word_of_an_animal_suffices(values: dict[str, bytes]) -> None:
    assert read_header_file(part10(values)).animal


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"PatientSpeciesDescription": b"HOMO SAPIENS"},
        {"PatientSpeciesDescription": b"human"},
        {"PatientSpeciesDescription": b"n/a", "PatientBreedDescription": b"Unknown"},
        {"PatientSpeciesDescription": b"-", "PatientBreedDescription": b"?", "PatientSexNeutered": b"N"},
        {"ResponsiblePersonRole": b"PARENT"},
    ],
)
def test_a_human_or_nothing_said_is_no_animal(values: dict[str, bytes]) -> None:
    assert not read_header_file(part10(values)).animal


@pytest.mark.parametrize(
    "species",
    [
        *("H. sapiens", "Homo sapiens sapiens", "Person", "HUMANA", "HUMANO", "HOMME", "Espèce humaine", "Adult"),
        *("Mensch", "Uomo", "Human, non-smoker", "n.a.", "None/Unknown"),
    ],
)
@pytest.mark.parametrize("breed", ["", "No", "None", "N/A", "Keine", "Human"])
def test_a_human_in_any_words_and_without_a_breed_is_no_animal(species: str, breed: str) -> None:
    values = {"PatientSpeciesDescription": species.encode(), "PatientBreedDescription": breed.encode()}
    assert not read_header_file(part10({"SpecificCharacterSet": b"ISO_IR 192", **values})).animal


@pytest.mark.parametrize(
    ("keyword", "value", "meaning", "expected"),
    [
        ("PatientSpeciesCodeSequence", "337915000", "Homo sapiens", False),
        ("PatientSpeciesCodeSequence", "L-85B00", "", False),
        ("PatientSpeciesCodeSequence", "X1", "Human", False),
        ("PatientSpeciesCodeSequence", "448771007", "Canis lupus subspecies familiaris", True),
        ("PatientSpeciesCodeSequence", "448771007", "", True),
        ("PatientSpeciesCodeSequence", "", "", False),
        ("PatientBreedCodeSequence", "42252000", "German shepherd dog", True),
        ("PatientBreedCodeSequence", "", "", False),
    ],
)
def test_coded_species_and_breeds_are_understood(keyword: str, value: str, meaning: str, expected: bool) -> None:
    dataset = instance()
    setattr(dataset, keyword, [coded(value, meaning)])
    assert read_header(stored(dataset)).animal is expected


def test_the_side_of_each_level_is_kept_apart() -> None:
    dataset = instance()
    dataset.ImageLaterality, dataset.Laterality = "R", "L"
    dataset.AnatomicRegionSequence = [modified("51440002")]
    dataset.SeriesDescription, dataset.StudyDescription = "Handgelenk rechts", "Poignet gauche"
    header = read_header(stored(dataset))
    assert header.sides == Sides(image="R", series="L", region="B", series_text="R", study_text="L")
    assert header.laterality == "R"


@pytest.mark.parametrize("keyword", ["SeriesDescription", "ProtocolName", "BodyPartExamined"])
def test_each_text_of_the_series_names_its_side(keyword: str) -> None:
    assert read_header_file(part10({keyword: b"HAND_RIGHT"})).sides == Sides(series_text="R")


@pytest.mark.parametrize("keyword", ["StudyDescription", "RequestedProcedureDescription"])
def test_each_text_of_the_study_names_its_side(keyword: str) -> None:
    assert read_header_file(part10({keyword: b"left hand"})).sides == Sides(study_text="L")


def test_coded_procedures_name_the_side_of_the_study_unless_they_are_of_both() -> None:
    dataset = instance()
    dataset.ProcedureCodeSequence = [coded("1", "XR wrist left")]
    assert read_header(stored(dataset)).sides == Sides(study_text="L")
    dataset.ProcedureCodeSequence = [coded("1", "XR wrist left"), coded("2", "XR wrist right")]
    assert read_header(stored(dataset)).sides == Sides()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["24028007"], "R"),
        (["G-A100"], "R"),
        (["7771000"], "L"),
        (["G-A101"], "L"),
        (["G-A102"], "B"),
        (["66459002"], ""),
        (["24028007", "7771000"], ""),
        (["24028007", "66459002"], "R"),
    ],
)
def test_the_modifier_of_the_anatomic_region_names_a_side_by_its_code(values: list[str], expected: str) -> None:
    dataset = instance()
    dataset.AnatomicRegionSequence = [modified(*values)]
    assert read_header(stored(dataset)).sides == Sides(region=expected)


def test_a_modifier_of_a_private_code_names_a_side_by_its_meaning() -> None:
    dataset = instance()
    dataset.AnatomicRegionSequence = [modified()]
    dataset.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded("X", "Rechts")]
    assert read_header(stored(dataset)).sides == Sides(region="R")


def test_of_texts_that_name_a_side_or_a_species_nothing_but_that_is_kept() -> None:
    hidden = {"ProtocolName": b"left Secretname", "RequestedProcedureDescription": b"right Secretname"}
    species = {"PatientSpeciesDescription": b"Secretname", "PatientBreedDescription": b"Secretname"}
    assert "Secretname" not in read_header_file(part10({**hidden, **species})).to_json()


def test_everything_is_read_and_survives_json() -> None:
    dataset = instance()
    dataset.PatientName, dataset.PatientID, dataset.IssuerOfPatientID = "Doe^Jane", "P1", "H"
    dataset.PatientBirthDate, dataset.PatientSex = "19800229", "O"
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "S1", "20260329", "1015"
    dataset.AccessionNumber, dataset.StudyDescription, dataset.ReferringPhysicianName = "A1", "Wrist", "House^G"
    dataset.Modality, dataset.BodyPartExamined, dataset.ImageLaterality, dataset.ViewPosition = "DX", "WRIST", "L", "AP"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 20, 10, 1
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.SeriesDescription = 3, 4, "AP"
    dataset.ImageType, dataset.PresentationIntentType = ["DERIVED", "PRIMARY"], "FOR PRESENTATION"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.TimezoneOffsetFromUTC = "ACME", "X1", "+0200"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20260328", "235959.123456"
    dataset.ContentDate, dataset.ContentTime = "20260329", "00"
    dataset.PatientAge, dataset.ResponsiblePersonRole, dataset.Laterality = "046Y", "OWNER", "R"
    region = modified("7771000")
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "74670003", "SCT", "Wrist joint"
    dataset.AnatomicRegionSequence = [region]
    equipment = Dataset()
    equipment.Manufacturer, equipment.ManufacturerModelName = "Osteon", "Osteon"
    dataset.ContributingEquipmentSequence = [equipment]

    header = read_header(stored(dataset))

    assert header.patient == Patient("Doe^Jane", "P1", "H", "19800229", "O")
    assert header.study == Study("S1", "20260329", "1015", "A1", "Wrist", "House^G", ())
    assert header.anatomic_region == Code("74670003", "SCT", "Wrist joint")
    assert header.contributing_equipment == (Equipment("Osteon", "Osteon"),)
    assert (header.rows, header.columns, header.number_of_frames) == (20, 10, 1)
    assert (header.series_number, header.instance_number, header.laterality) == (3, 4, "L")
    assert (header.acquisition_date, header.acquisition_time) == ("20260328", "235959.123456")
    assert (header.timezone_offset, header.image_type) == ("+0200", ("DERIVED", "PRIMARY"))
    assert (header.age, header.animal) == (pytest.approx(46.08, abs=0.01), True)
    assert header.sides == Sides(image="L", series="R", region="L")
    assert SourceHeader.from_json(header.to_json()) == header


@pytest.mark.parametrize(
    ("values", "scanner"),
    [
        ({"ManufacturerModelName": b"DRX-Evolution", "StationName": b"ROOM2"}, "DRX-Evolution, ROOM2"),
        ({"Manufacturer": b"ACME", "ManufacturerModelName": b"X1"}, "X1"),
        ({"Manufacturer": b"ACME", "StationName": b"ROOM2"}, "ACME, ROOM2"),
        ({"Manufacturer": b" ", "StationName": b"ROOM\x07 2\x00"}, "ROOM 2"),
        ({"Manufacturer": "Röntgen".encode("latin-1")}, "Röntgen"),
        ({}, "PACS"),
        ({"ManufacturerModelName": b"M" * 65_000, "StationName": b"S" * 65_000}, "M" * 46 + ", " + "S" * 16),
        ({"StationName": b"\xff\xfe\x1b$B\\" * 9, "ManufacturerModelName": b"X1"}, None),
    ],
)
def test_a_scanner_is_named_by_model_and_station_and_by_its_sender_where_the_header_is_silent(
    values: dict[str, bytes], scanner: str | None
) -> None:
    found = read_header_file(part10(values)).scanner("PACS")
    assert scanner is None or found == scanner
    assert 0 < len(found) <= 64


def test_a_station_name_of_another_value_representation_is_no_error() -> None:
    dataset = instance()
    for vr, value in (("SQ", [Dataset()]), ("US", 7), ("OB", b"\0" * 64_000), ("AT", 0x00100010)):
        dataset.add_new("StationName", vr, value)
        assert len(read_header(dataset).scanner("PACS")) <= 64


@pytest.mark.parametrize(
    ("keyword", "value", "urgent"),
    [
        ("RequestedProcedurePriority", "STAT", True),
        ("RequestedProcedurePriority", "high", True),
        ("RequestedProcedurePriority", "ROUTINE", False),
        ("RequestedProcedurePriority", "NOT HIGH", False),
        ("StudyPriorityID", "HIGH", True),
        ("StudyPriorityID", "MED", False),
        ("StudyPriorityID", "", False),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["", "in a request"])
def test_a_source_asks_by_its_priority_to_be_read_first(keyword: str, value: str, urgent: bool, inside: bool) -> None:
    dataset, request = pydicom.dcmread(part10({}), force=True), Dataset()
    setattr(request if inside else dataset, keyword, value)
    dataset.RequestAttributesSequence = [Dataset(), request]
    # The study's own priority has no place in a request.
    expected = urgent and not (inside and keyword == "StudyPriorityID")
    assert read_header(stored(dataset)).urgent is expected
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    assert read_header_file(BytesIO(file.getvalue())).urgent is expected


def test_the_attributes_listed_are_enough_to_read_the_same_header() -> None:
    for path in radiographs():
        listed = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        assert read_header(listed) == read_header(pydicom.dcmread(path)) == read_header_file(path)


def test_a_real_radiograph_is_read() -> None:
    header = read_header_file(next(path for path in radiographs() if "RG3" in path.name))
    assert (header.modality, header.laterality, header.view_position) == ("CR", "R", "AP")
    assert (header.rows, header.columns, header.body_part_examined) == (1760, 1760, "EXTREMITY")


def test_nothing_that_pydicom_complains_of_is_logged_and_it_may_complain_again_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = {"PatientName": b"Secret\xff", "PatientBirthDate": b"Secret", "NumberOfFrames": b"Secret"}
    file = part10({"SpecificCharacterSet": b"ISO_IR 192", **values})
    read_header_file(file)
    file.seek(0)
    read_header(pydicom.dcmread(file))
    assert caplog.text == ""
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text


def test_reading_does_not_change_the_data_set() -> None:
    dataset = pydicom.dcmread(part10({"PatientName": b"Doe^Jane", "Rows": b"\x10\x00"}))
    before = dataset.get_item("PatientName")
    read_header(dataset)
    assert dataset.get_item("PatientName") is before


@pytest.mark.parametrize(
    "content", [b"", b"DICM", b"\0" * 200, b"\x89PNG\r\n\x1a\n" + b"x" * 300, b"\0" * 128 + b"DICM" + b"\xff" * 50]
)
def test_what_is_no_dicom_file_is_refused(content: bytes) -> None:
    with pytest.raises(HeaderError):
        read_header_file(BytesIO(content))


def test_a_file_that_is_not_there_is_no_matter_of_its_content(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header_file(tmp_path / "absent.dcm")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"patient": 1}', "Doe^Jane"])
def test_a_text_that_is_no_header_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(HeaderError, match="not a kept header"):
        SourceHeader.from_json(text)


def test_a_header_kept_by_an_older_version_takes_defaults_and_one_by_a_newer_is_read() -> None:
    kept = '{"sop_class_uid":"1","sop_instance_uid":"2","series_instance_uid":"3","study_instance_uid":"4","later":[1]}'
    assert SourceHeader.from_json(kept) == SourceHeader("1", "2", "3", "4")


text = st.text(max_size=20)
codes = st.builds(Code, text, text, text)


@given(
    st.builds(
        SourceHeader,
        patient=st.builds(Patient, text, text, text, text, text),
        study=st.builds(Study, procedure_codes=st.lists(codes, max_size=3).map(tuple)),
        anatomic_region=st.none() | codes,
        contributing_equipment=st.lists(st.builds(Equipment, text, text), max_size=2).map(tuple),
        image_type=st.lists(text, max_size=3).map(tuple),
        rows=st.none() | st.integers(),
        age=st.none() | st.floats(0, 130),
        animal=st.booleans(),
        sides=st.builds(Sides, text, text, text, text, text),
        urgent=st.booleans(),
    )
)
def test_every_header_survives_json(header: SourceHeader) -> None:
    assert SourceHeader.from_json(header.to_json()) == header


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([name for name in HEADER_TAGS if name not in UIDS]), st.binary(max_size=40), max_size=6
    )
)
def test_no_garbage_in_a_value_is_an_error_or_leaves_a_replacement_character(values: dict[str, bytes]) -> None:
    try:
        header = read_header_file(part10(values))
    except HeaderError as error:
        # Only a sequence whose bytes break the frame of the file may make it unreadable.
        assert any(dictionary_VR(name) == "SQ" for name in values), error  # noqa: PT017
        return
    kept = header.to_json()
    assert "\ufffd" not in kept
    assert SourceHeader.from_json(kept) == header
    kept.encode("utf-8")


@pytest.mark.parametrize("declared", [b"ISO_IR\x00100", b"\x00ISO_IR 100", b"\\\x00ISO 2022 IR 87", b"\x00\\\x00x"])
def test_a_null_in_the_name_of_a_character_set_makes_it_an_unknown_one(declared: bytes) -> None:
    header = read_header_file(
        part10({"SpecificCharacterSet": declared, "PatientName": "Müller^Jörg".encode("latin-1")})
    )
    assert header.patient.name == "Müller^Jörg"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        read_header_file(BytesIO(b"\0" * 128 + b"DICM" + content), force=True)
    except HeaderError as error:
        assert error.__cause__ is None  # noqa: PT017


def test_headers_are_read_by_several_threads_at_once_without_a_warning() -> None:
    declared, raw, expected = NAMES["declared utf-8, sent as latin"]
    content = part10({"SpecificCharacterSet": declared, "PatientName": raw}).getvalue()
    names: list[str] = []

    def read() -> None:
        names.extend(read_header_file(BytesIO(content)).patient.name for _ in range(50))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == [expected] * 200


def instance() -> Dataset:
    dataset = Dataset()
    for keyword, value in UIDS.items():
        setattr(dataset, keyword, value.decode())
    return dataset


def coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def modified(*values: str) -> Dataset:
    """An anatomic region with modifiers of these codes."""
    item = coded("85562004", "Hand")
    item.AnatomicRegionModifierSequence = [coded(value, "Side") for value in values]
    return item


def stored(dataset: Dataset) -> Dataset:
    file = BytesIO()
    dataset.save_as(file, implicit_vr=False, little_endian=True)
    file.seek(0)
    return pydicom.dcmread(file, force=True)


def radiographs() -> list[Path]:
    folder = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"
    spec = find_spec("data_store")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    packaged = Path(next(iter(spec.submodule_search_locations))) / "data"
    return sorted(folder.glob("*UNC.dcm")) + sorted(packaged.glob("RG[13]_UNC*.dcm"))
