"""The HL7 message says what the report says, to parsers that did not write it, and nothing breaks out of a field."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import timedelta
from typing import Any

import hl7
import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.headers import Code, Patient
from dicom_node.network.mllp import control_id_of
from dicom_node.objects.content import DISCLAIMER, Algorithm, ImageOutcome, ReportContent, impression
from dicom_node.objects.oru import build_oru, render_oru_uid
from models.reasons import Reason
from tests.reports import PATIENT, STUDY, content, header, image, reading, unread, variants

ABSENT, PRESENT, UNDETERMINED = "272519000", "52101004", "373068000"
VARIANTS = variants()
LINE_BREAKS = "\u2028\u2029"


def parsed(made: bytes) -> hl7.Message:
    assert made.endswith(b"\r")
    return hl7.parse(made.decode("utf-8"))


def field(message: hl7.Message, place: str) -> str:
    """A whole field, such as "PID.F5", as it was written."""
    segment, number = place.split(".F")
    found = message.segment(segment)
    return str(found[int(number)]) if len(found) > int(number) else ""


def observations(message: hl7.Message, identifier: str) -> list[hl7.Segment]:
    """The OBX segments whose OBX-3 has this code, or this text where it has no code."""
    found = []
    for segment in message.segments("OBX"):
        code, text = str(segment[3][0][0]), str(segment[3][0][1])
        if identifier in (code, text if not code else ""):
            found.append(segment)
    return found


def values(message: hl7.Message, identifier: str) -> list[tuple[str, str]]:
    """OBX-4 and the first component of OBX-5."""
    return [(str(each[4]), str(each[5]).split("^")[0]) for each in observations(message, identifier)]


def _with_texts_as_short_as_strings(message: str) -> str:
    """To a strict hl7apy any OBX-5 is an ST, of 199 characters; a TX has up to 65,536 (2.5.1, 2.A.78)."""
    segments = [segment.split("|") for segment in message.split("\r")]
    for segment in segments:
        if segment[0] == "OBX" and segment[2] == "TX":
            assert len(segment[5]) <= 65_536
            segment[5] = segment[5][:199]
    return "\r".join("|".join(segment) for segment in segments)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_preliminary_message_that_hl7apy_takes_by_the_letter(name: str) -> None:
    made = build_oru(VARIANTS[name], receiving_application="RIS", report_sop_instance_uid="2.25.1")
    shortened = _with_texts_as_short_as_strings(made.decode())
    strict = parse_message(shortened, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert strict.validate()
    message = parsed(made)
    assert field(message, "MSH.F9") == "ORU^R01^ORU_R01"
    assert field(message, "MSH.F12") == "2.5.1"
    assert field(message, "MSH.F18") == "UNICODE UTF-8"
    assert str(message.segment("OBR")[25]) == "P"
    assert [str(each[11]) for each in message.segments("OBX")] == ["P"] * len(list(message.segments("OBX")))
    assert [str(each[1]) for each in message.segments("OBX")] == [
        str(number) for number in range(1, 1 + len(list(message.segments("OBX"))))
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_not_analysed_is_never_absent_and_says_why(name: str) -> None:
    said = VARIANTS[name]
    message = parsed(build_oru(said))
    absent = {sub_id for sub_id, value in values(message, "125605004") if value == ABSENT}
    for number, outcome in enumerate(said.images, start=1):
        read_as_absent = any(each.decision == "no_fracture" for each in outcome.readings)
        assert read_as_absent or not any(sub_id.split(".")[0] == str(number) for sub_id in absent)
        if outcome.not_analysed is not None and outcome.not_analysed is not Reason.NOT_AN_IMAGE:
            comments = dict(values(message, "121106"))
            assert comments[str(number)].endswith(outcome.not_analysed.sentence)
    everything_read = all(outcome.readings or outcome.not_analysed is Reason.NOT_AN_IMAGE for outcome in said.images)
    assert "" not in absent or everything_read


def test_the_study_the_report_and_the_impression_stand_in_it() -> None:
    said = content(image(), image(2, "no_fracture"), image(3, "undetermined"), unread(4, Reason.BLANK))
    message = parsed(build_oru(said, report_sop_instance_uid="2.25.4711"))
    assert values(message, "113014") == [("", "1.2.3")]
    assert values(message, "SR Instance UID") == [("", "2.25.4711")]
    assert values(message, "19005-8") == [("", impression(said).text)]
    assert values(message, "125605004") == [("", PRESENT), ("1.1", PRESENT), ("2.1", ABSENT), ("3.1", UNDETERMINED)]
    assert values(message, "111012") == [("1.1", "83.1"), ("2.1", "3.1"), ("3.1", "41.0")]
    assert [sub_id for sub_id, _ in values(message, "SOP Instance UID")] == ["1", "2", "3", "4"]
    assert values(message, "121106")[-1] == ("", f"{DISCLAIMER}.")
    assert [str(each[8]) for each in observations(message, "125605004")] == ["A", "A", "", ""]


def test_the_algorithm_stands_in_it_and_another_one_with_the_image_that_it_read() -> None:
    other = Algorithm("osteon-fracture", "0.9.0", "Osteon", "cd" * 32)
    message = parsed(build_oru(content(image(), replace(image(2), algorithm=other))))
    assert values(message, "111003") == [("2", "0.9.0"), ("", "1.0.0")]
    assert values(message, "111002") == [("2", "bundle sha256: " + "cd" * 32), ("", "bundle sha256: " + "ab" * 32)]


def test_several_findings_are_decided_each_for_itself() -> None:
    message = parsed(build_oru(VARIANTS["several findings"]))
    assert values(message, "125605004") == [("", PRESENT), ("1.1", PRESENT), ("2.1", UNDETERMINED)]
    assert values(message, "87642003") == [("", PRESENT), ("1.2", ABSENT), ("2.2", PRESENT)]


def test_patient_order_and_time_stand_where_they_belong() -> None:
    said = content(image(timezone_offset="+0200"))
    message = parsed(build_oru(said, receiving_application="RIS", receiving_facility="St. Elsewhere"))
    assert field(message, "MSH.F3") == "OSTEON"
    assert field(message, "MSH.F4") == f"^{said.installation_uid}^ISO"
    assert (field(message, "MSH.F5"), field(message, "MSH.F6")) == ("RIS", "St. Elsewhere")
    assert field(message, "MSH.F7") == "20260329233015+0000"
    assert field(message, "PID.F3") == "PID-1^^^HOSPITAL^PI"
    assert field(message, "PID.F5") == "Doe^Jane^^^^^L^A"
    assert (field(message, "PID.F7"), field(message, "PID.F8")) == ("19800229", "F")
    assert field(message, "OBR.F3") == field(message, "OBR.F18") == "A-77"
    assert field(message, "OBR.F4") == "PROCEDURE^Wrist, two views^99OSTEON"
    assert field(message, "OBR.F7") == "20260329101500+0200"


def test_names_in_several_scripts_are_repetitions_of_the_name() -> None:
    name = "Yamada^Tarou^M^Dr^Jr=山田^太郎=やまだ^たろう"
    message = parsed(build_oru(content(image(patient=replace(PATIENT, name=name)))))
    assert field(message, "PID.F5") == "Yamada^Tarou^M^Jr^Dr^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P"


def test_a_patient_without_an_id_is_nobody_else_and_nothing_is_made_up() -> None:
    message = parsed(build_oru(VARIANTS["bare"]))
    assert field(message, "PID.F3") == "1.2.3^^^^ANON"
    assert field(message, "PID.F5") == "^^^^^^U"
    assert field(message, "OBR.F3") == "1.2.3"


def test_hl7s_null_in_a_header_deletes_nothing_at_the_receiver() -> None:
    null = Patient(name='""^""', id='""', issuer='""')
    made = build_oru(content(image(patient=null, study=replace(STUDY, accession_number=' "" '))))
    assert b'""' not in made
    assert field(parsed(made), "PID.F3") == "1.2.3^^^^ANON"


@pytest.mark.parametrize("birth_date", ["19800231", "1980", "not a day", "1980-02-2"])
def test_what_is_no_date_is_left_out(birth_date: str) -> None:
    made = build_oru(content(image(patient=replace(PATIENT, birth_date=birth_date, sex="?"))))
    assert [str(each) for each in parsed(made).segment("PID")[7:9]] in ([], [""], ["", ""])
    made = build_oru(content(image(study=replace(STUDY, date=birth_date))))
    assert field(parsed(made), "OBR.F7") == ""


@pytest.mark.parametrize("time", ["", "25", "10", "1015", "101500.123456", "101560", "10:15"])
def test_a_time_is_given_as_far_as_it_is_one(time: str) -> None:
    moment = field(parsed(build_oru(content(image(study=replace(STUDY, date="20260329", time=time))))), "OBR.F7")
    expected = {"10": "10", "1015": "1015", "101500.123456": "101500", "101560": "1015", "10:15": "10"}
    assert moment == "20260329" + expected.get(time, "")


def test_what_hl7_would_take_for_its_own_is_escaped_also_where_it_looks_escaped_already() -> None:
    name = "M|ll&r~\\F\\\r\nPID|2^Jane"
    made = build_oru(content(image(patient=replace(PATIENT, name=name))))
    assert field(parsed(made), "PID.F5") == "M\\F\\ll\\T\\r\\R\\\\E\\F\\E\\  PID\\F\\2^Jane^^^^^L^A"


NASTY = st.text(st.one_of(st.sampled_from("|^&~\\\r\n\x0b\x1c\x00\x85FSTREX.br0D"), st.characters()), max_size=40)


@settings(max_examples=40, deadline=None)
@given(family=NASTY, identifier=NASTY, accession=NASTY, meaning=NASTY.filter(bool))
def test_no_text_breaks_out_of_its_field(family: str, identifier: str, accession: str, meaning: str) -> None:
    # ^ and = part the groups of a DICOM name; everything else belongs to it.
    family = family.replace("^", "&").replace("=", "&")
    patient = Patient(name=f"{family}^Jane", id=identifier, issuer=meaning, birth_date="19800229", sex="F")
    study = replace(STUDY, accession_number=accession, procedure_codes=(Code("P", "99X", meaning),))
    made = build_oru(content(image(patient=patient, study=study)))
    assert b"\x0b" not in made
    assert b"\x1c" not in made
    plain = build_oru(content(image()))
    assert [line[:3] for line in made.split(b"\r")] == [line[:3] for line in plain.split(b"\r")]
    message = parsed(made)
    names, orders = (field(message, place).split("^") for place in ("PID.F5", "OBR.F18"))
    assert [message.unescape(part) for part in names] == [one_line(family), "Jane", *[""] * 4, "L", "A"]
    assert [message.unescape(part) for part in orders] == [one_line(accession)]
    if one_line(identifier):
        known = [message.unescape(part) for part in field(message, "PID.F3").split("^")]
        assert known == [one_line(identifier), "", "", one_line(meaning), "PI"]


def one_line(text: str) -> str:
    """What may stand in a field: control characters are a space, and so are those that end lines elsewhere."""
    kept = "".join(" " if each in LINE_BREAKS or unicodedata.category(each) == "Cc" else each for each in text)
    line = kept.strip().encode("utf-8", "replace").decode()
    return "" if line == '""' else line


# --- the same again ---------------------------------------------------------------------------------------------------


def test_the_same_content_gives_the_same_bytes_and_another_time_the_same_uid_and_control_id() -> None:
    said = content(image(), image(2, "no_fracture"))
    later = replace(said, created_at=said.created_at + timedelta(hours=1))
    assert build_oru(said) == build_oru(replace(said))
    assert build_oru(later) != build_oru(said)
    assert render_oru_uid(later) == render_oru_uid(said)
    assert control_id_of(build_oru(later)) == control_id_of(build_oru(said))
    assert len(control_id_of(build_oru(said))) == 20


def changes() -> dict[str, tuple[ReportContent, dict[str, Any]]]:
    base = content(image())
    return {
        "decision": (content(image(decision="undetermined")), {}),
        "probability": (content(ImageOutcome(header(), readings=(replace(reading(), probability=0.9),))), {}),
        "threshold": (content(ImageOutcome(header(), readings=(replace(reading(), present_from=0.7),))), {}),
        "name": (content(image(patient=replace(PATIENT, name="Roe^Jane"))), {}),
        "accession number": (content(image(study=replace(STUDY, accession_number="B-1"))), {}),
        "reason": (content(unread(1, Reason.BLANK)), {}),
        "bundle": (replace(base, algorithm=replace(base.algorithm, bundle_sha256="cd" * 32)), {}),
        "receiver": (base, {"receiving_application": "OTHER"}),
        "facility": (base, {"receiving_facility": "OTHER"}),
        "report": (base, {"report_sop_instance_uid": "2.25.2"}),
    }


@pytest.mark.parametrize("name", changes())
def test_other_content_never_goes_out_under_the_same_control_id(name: str) -> None:
    changed, arguments = changes()[name]
    assert render_oru_uid(changed, **arguments) != render_oru_uid(content(image()))
    assert control_id_of(build_oru(changed, **arguments)) != control_id_of(build_oru(content(image())))


def test_what_hl7apy_finds_fault_with_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.objects.oru._order", lambda _: "OBR|1||Planted")
    with pytest.raises(ValueError, match="not an HL7 message: ValidationError") as error:
        build_oru(content(image(patient=replace(PATIENT, name="Planted^Name"))))
    assert "Planted" not in str(error.value)
    assert error.value.__cause__ is None
