"""The header of an instance as plain, frozen dataclasses: read once, kept as JSON, needed long after the file is gone.

This is the one place where attributes are taken out of a data set. Nothing in here is a pydicom type, so a report can
be built again years later from the database alone. What is missing, empty or invalid becomes `""` or `None`; only an
instance without its four UIDs is refused. No exception and no warning of this module carries a value of the patient's.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import pairwise
from os import PathLike
from typing import Any, BinaryIO

import pydicom
from pydicom import charset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from dicom_node.ages import age_in_years
from dicom_node.inflate import beginning
from dicom_node.sides import named_side, words


class HeaderError(ValueError):
    """The instance cannot be identified; the message names the attribute, never its value."""


@dataclass(frozen=True, slots=True)
class Code:
    """A coded entry (PS3.3, Table 8.8-1): `value` in coding scheme `scheme`, with its plain `meaning`."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Equipment:
    """An item of the Contributing Equipment Sequence (PS3.3, C.12.1.1.5)."""

    manufacturer: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """Who it is (PS3.3, C.7.1.1). `name` keeps all its groups: alphabetic=ideographic=phonetic."""

    name: str = ""
    id: str = ""
    issuer: str = ""
    birth_date: str = ""  # YYYYMMDD
    sex: str = ""  # M, F, O


@dataclass(frozen=True, slots=True)
class Study:
    """The study as its source describes it (PS3.3, C.7.2.1)."""

    id: str = ""
    date: str = ""  # YYYYMMDD
    time: str = ""  # HH[MM[SS[.ffffff]]]
    accession_number: str = ""
    description: str = ""
    referring_physician: str = ""
    procedure_codes: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A procedure that somebody asked for: an item of the Request Attributes Sequence (PS3.3, 10.6)."""

    accession_number: str = ""  # "" where it is the study's
    study_instance_uid: str = ""
    procedure_id: str = ""
    description: str = ""
    procedure_code: Code | None = None
    placer_order: str = ""
    filler_order: str = ""


@dataclass(frozen=True, slots=True)
class Sides:
    """The side that each level of the header names, kept apart: "R", "L", "B" (both), "U" (unpaired), "" (none).

    Only the side is kept of the texts: they are free texts, and may hold more than they should.
    """

    image: str = ""  # Image Laterality
    series: str = ""  # Laterality
    region: str = ""  # Anatomic Region Modifier Sequence
    series_text: str = ""  # Series Description, Protocol Name, Body Part Examined
    study_text: str = ""  # Study Description, Requested Procedure Description, Procedure Code Sequence


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """What Osteon keeps of an instance's header."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient: Patient = Patient()
    study: Study = Study()
    modality: str = ""
    body_part_examined: str = ""  # in capitals; what a code string may not hold is a space
    anatomic_region: Code | None = None
    laterality: str = ""  # R, L, B (both) or U (unpaired); Image Laterality before Laterality
    view_position: str = ""
    view_code: Code | None = None
    image_type: tuple[str, ...] = ()
    presentation_intent: str = ""  # FOR PRESENTATION, FOR PROCESSING
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int | None = None
    series_number: int | None = None
    instance_number: int | None = None
    series_description: str = ""
    instance_creation_date: str = ""
    instance_creation_time: str = ""
    content_date: str = ""
    content_time: str = ""
    acquisition_date: str = ""
    acquisition_time: str = ""
    timezone_offset: str = ""  # &ZZXX, as +0200
    manufacturer: str = ""
    model: str = ""
    station: str = ""  # the name that its site gave it
    contributing_equipment: tuple[Equipment, ...] = ()
    age: float | None = None  # years; see `dicom_node.ages`
    animal: bool = False  # something says that the patient is not a human
    sides: Sides = Sides()
    urgent: bool = False  # its source asks for it first
    requests: tuple[Request, ...] = ()  # without those that say nothing, and each once
    unusable: tuple[str, ...] = ()  # keywords of what was sent and is no valid value, and so is empty here

    def scanner(self, calling_ae_title: str) -> str:
        """Which equipment made it, in at most 64 characters.

        Model and station name together: two rooms may have the same model, and a new scanner may take over the name of
        the old one; either is another scanner. The manufacturer stands in for a model that is not named. The calling AE
        title is what remains: it comes last because a PACS that forwards for everybody has one for all of them.
        """
        station = self.station[:16].strip()
        made_by = (self.model or self.manufacturer)[: 62 - len(station)].strip()
        return ", ".join(part for part in (made_by, station) if part) or calling_ae_title[:16]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so that equal headers are equal texts."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> SourceHeader:
        """Read what `to_json` wrote; attributes that a later version added take their defaults.

        Raises
        ------
        HeaderError
            If the text is not a header.
        """
        try:
            return _from_dict(json.loads(text))
        except (TypeError, ValueError, KeyError, AttributeError):
            raise HeaderError("the text is not a kept header") from None


def read_header(dataset: Dataset, *, default_charset: str | None = None) -> SourceHeader:
    """Turn a data set's header into a `SourceHeader`.

    Parameters
    ----------
    dataset
        Any data set; it is not changed. Best one of which nobody has looked at the names: where a character set was
        wrongly declared, pydicom replaces what it cannot decode on the first look.
    default_charset
        Defined terms (PS3.3, C.12.1.1.2), such as "ISO_IR 144" or "\\ISO 2022 IR 87", for text of a source that
        declares no Specific Character Set but ASCII. Without it such text is taken as UTF-8 where it is valid UTF-8,
        else as Latin-1 with the signs that Windows adds to it.

    Raises
    ------
    HeaderError
        If SOP Class, SOP Instance, Study or Series Instance UID is missing or not a UID (PS3.5, 9.1).
    """
    with quiet():
        return _Reader(dataset, default_charset=default_charset).header()


def read_header_file(
    source: str | PathLike[str] | BinaryIO, *, default_charset: str | None = None, force: bool = False
) -> SourceHeader:
    """Read the header of a DICOM file, up to the pixel data and only the attributes in `HEADER_TAGS`.

    Parameters
    ----------
    source
        A path, or a binary file that can seek.
    default_charset
        As in `read_header`.
    force
        Also read files that lack the Part 10 preamble (PS3.10, 7.1).

    Raises
    ------
    HeaderError
        If it is not a DICOM file or lacks its UIDs.
    OSError
        If the file cannot be opened or read: that says nothing about its content.
    """
    if isinstance(source, str | PathLike):
        with open(source, "rb") as file:
            return read_header_file(file, default_charset=default_charset, force=force)
    with quiet():
        try:
            dataset = pydicom.dcmread(
                beginning(source), stop_before_pixels=True, specific_tags=_HEADER_TAGS, force=force
            )
        except OSError as error:
            if error.errno is not None:
                raise
            raise HeaderError("the file cannot be parsed as DICOM") from None
        except Exception:  # pydicom has no common class for what malformed bytes can bring about
            raise HeaderError("the file cannot be parsed as DICOM") from None
        return _Reader(dataset, default_charset=default_charset).header()


HEADER_TAGS: tuple[str, ...] = (
    "SpecificCharacterSet",
    "ImageType",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "AcquisitionDate",
    "ContentDate",
    "StudyTime",
    "AcquisitionTime",
    "ContentTime",
    "AccessionNumber",
    "Modality",
    "PresentationIntentType",
    "Manufacturer",
    "ReferringPhysicianName",
    "StationName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "ProcedureCodeSequence",
    "SeriesDescription",
    "ManufacturerModelName",
    "AnatomicRegionSequence",  # with its Anatomic Region Modifier Sequence
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientSexNeutered",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "ResponsiblePersonRole",
    "BodyPartExamined",
    "ProtocolName",
    "ContributingEquipmentSequence",
    "ViewPosition",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "SeriesNumber",
    "InstanceNumber",
    "Laterality",
    "ImageLaterality",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "StudyPriorityID",
    "RequestedProcedureDescription",
    "RequestAttributesSequence",
    "RequestedProcedurePriority",
    "ViewCodeSequence",
)
"""Keywords to read: `pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))`."""

# pydicom would look them up again, twice for each file: a quarter of the time that reading a header takes.
_tag = cache(Tag)
_HEADER_TAGS = [_tag(keyword) for keyword in HEADER_TAGS]


def is_uid(text: str) -> bool:
    """Whether the text can stand as a UID: digits and dots, at most 64 characters (PS3.5, 9.1).

    Components with a leading zero are let through: the standard forbids them, scanners send them, and refusing an image
    for that helps no patient.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}", re.ASCII)
_CODE_STRING = re.compile(r"[A-Z0-9 _]{1,64}", re.ASCII)
_NOT_CODE_STRING = re.compile(r"[^A-Z0-9 _]+")
_TIME = re.compile(r"([01][0-9]|2[0-3])(?:([0-5][0-9])(?:([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?", re.ASCII)
_OLD_TIME = re.compile(r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?")  # as ACR-NEMA wrote it (PS3.5, 6.2, TM)
_OFFSET = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]", re.ASCII)
_SPECIES, _BREEDS = "PatientSpeciesCodeSequence", "PatientBreedCodeSequence"
_HUMAN_CODES = {"337915000", "L-85B00"}  # Homo sapiens (PS3.16, CID 7454), in SNOMED CT and as it was before
_HUMAN_WORDS = {
    *("HOMO", "SAPIENS", "HUMAN", "HUMANS", "MENSCH", "MENSCHLICH", "HUMAIN", "HUMAINE", "HUMANO", "HUMANA"),
    *("UMANO", "UMANA", "ヒト", "人"),
}
_NO_HUMAN = {"NON", "NOT", "NO", "NICHT", "KEIN"}  # before one of those words, as in "non-human primate"
_EMPTY_WORDS = {
    *("UNKNOWN", "UNSPECIFIED", "UNDEFINED", "NONE", "UNK", "NA", "N", "A", "NULL", "NIL", "NO", "NOT", "STATED"),
    *("SPECIFIED", "APPLICABLE", "KEINE", "UNBEKANNT", "AUCUN", "AUCUNE", "INCONNU", "INCONNUE", "NINGUNO", "NINGUNA"),
    *("DESCONOCIDO", "DESCONOCIDA", "NESSUNO", "NESSUNA", "SCONOSCIUTO", "SCONOSCIUTA"),
    # Of people first, but no proof against an animal: there are adult dogs.
    *("PERSON", "PERSONA", "PERSONNE", "PATIENT", "ADULT", "ADULTE", "ADULTO", "ADULTA", "ERWACHSENER"),
    *("MAN", "WOMAN", "MANN", "FRAU", "HOMME", "FEMME", "HOMBRE", "MUJER", "UOMO", "DONNA"),
}
# SNOMED CT (PS3.16, CID 244), and the codes before it.
_SIDE_CODES = {"24028007": "R", "7771000": "L", "51440002": "B", "G-A100": "R", "G-A101": "L", "G-A102": "B"}
# What no text attribute may hold (PS3.5, 6.1.3), and what decoding leaves behind.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]+")
_ESCAPE = b"\x1b"
_ESCAPE_SEQUENCE = re.compile(r"\x1b[\x20-\x2f]+[\x30-\x7e]")  # ISO 2022
_UNLIKELY = re.compile(r"[\ufffd\x80-\x9f]")
_ASCII_ALONE = {"", "ISO_IR 6", "ISO 2022 IR 6"}
# After these, text returns to the first character set (PS3.5, 6.1.2.5.3).
_NAME_DELIMITERS = {0x5E, 0x3D}
_TEXT_DELIMITERS = {0x09, 0x0A, 0x0C, 0x0D, 0x5C}


class _Reader:
    """Reads one data set, or one item of a sequence in it."""

    def __init__(
        self, dataset: Dataset, *, default_charset: str | None = None, declared: Sequence[str] | None = None
    ) -> None:
        self._dataset = dataset
        self._default_charset = default_charset
        self._unusable: set[str] = set()
        own = self._ascii("SpecificCharacterSet")
        # An item without a character set of its own has that of the data set around it (PS3.5, 7.5.3).
        self._declared = [term.strip() for term in own.split("\\")] if own else declared
        if self._declared is not None and _ASCII_ALONE.issuperset(self._declared):
            self._declared = None  # of what is not ASCII this says as little as nothing
        self._encodings = self._python_encodings()

    def header(self) -> SourceHeader:
        uids = {name: self._uid(name) for name in _UIDS}
        return SourceHeader(
            sop_class_uid=uids["SOPClassUID"],
            sop_instance_uid=uids["SOPInstanceUID"],
            series_instance_uid=uids["SeriesInstanceUID"],
            study_instance_uid=uids["StudyInstanceUID"],
            patient=self._patient(),
            study=self._study(),
            modality=self._code_string("Modality"),
            body_part_examined=self._body_part(),
            anatomic_region=_first(self._codes("AnatomicRegionSequence")),
            laterality=self._laterality("ImageLaterality") or self._laterality("Laterality"),
            view_position=self._code_string("ViewPosition"),
            view_code=_first(self._codes("ViewCodeSequence")),
            image_type=tuple(
                part for raw in self._ascii("ImageType").split("\\") if (part := _matching(_CODE_STRING, raw.strip()))
            ),
            presentation_intent=self._code_string("PresentationIntentType"),
            rows=self._number("Rows", least=1),
            columns=self._number("Columns", least=1),
            number_of_frames=self._number("NumberOfFrames", least=1),
            series_number=self._number("SeriesNumber"),
            instance_number=self._number("InstanceNumber"),
            series_description=self._text("SeriesDescription"),
            instance_creation_date=self._date("InstanceCreationDate"),
            instance_creation_time=self._time("InstanceCreationTime"),
            content_date=self._date("ContentDate"),
            content_time=self._time("ContentTime"),
            acquisition_date=self._date("AcquisitionDate"),
            acquisition_time=self._time("AcquisitionTime"),
            timezone_offset=self._offset(),
            manufacturer=self._text("Manufacturer"),
            model=self._text("ManufacturerModelName"),
            station=self._text("StationName"),
            contributing_equipment=tuple(
                Equipment(item._text("Manufacturer"), item._text("ManufacturerModelName"))
                for item in self._items("ContributingEquipmentSequence")
            ),
            age=age_in_years(
                self._ascii("PatientAge"),
                self._date("PatientBirthDate"),
                [self._date(keyword) for keyword in ("StudyDate", "AcquisitionDate", "ContentDate")],
            ),
            animal=self._is_animal(),
            sides=self._sides(),
            urgent=self._is_urgent(),
            requests=self._requests(),
            unusable=tuple(sorted(self._unusable)),  # known once all is read
        )

    def _patient(self) -> Patient:
        sex = self._code_string("PatientSex")
        return Patient(
            name=self._text("PatientName").rstrip("="),
            id=self._text("PatientID"),
            issuer=self._text("IssuerOfPatientID"),
            birth_date=self._date("PatientBirthDate"),
            sex=self._kept("PatientSex", sex, sex if sex in {"M", "F", "O"} else ""),
        )

    def _study(self) -> Study:
        return Study(
            id=self._text("StudyID"),
            date=self._date("StudyDate"),
            time=self._time("StudyTime"),
            accession_number=self._text("AccessionNumber"),
            description=self._text("StudyDescription"),
            referring_physician=self._text("ReferringPhysicianName").rstrip("="),
            procedure_codes=self._codes("ProcedureCodeSequence"),
        )

    def _requests(self) -> tuple[Request, ...]:
        found = dict.fromkeys(item._request() for item in self._items("RequestAttributesSequence"))
        return tuple(request for request in found if request != Request())

    def _request(self) -> Request:
        study = self._ascii("StudyInstanceUID")
        return Request(
            accession_number=self._text("AccessionNumber"),
            study_instance_uid=study if is_uid(study) else "",
            procedure_id=self._text("RequestedProcedureID"),
            description=self._text("RequestedProcedureDescription"),
            procedure_code=_first(self._codes("RequestedProcedureCodeSequence")),
            placer_order=self._text("PlacerOrderNumberImagingServiceRequest"),
            filler_order=self._text("FillerOrderNumberImagingServiceRequest"),
        )

    def _body_part(self) -> str:
        """Keep the words of "CHEST, PA" too, which is no code string: without them nothing would seem to be stated."""
        value = self._value("BodyPartExamined")
        text = self._decode(value, "BodyPartExamined") if isinstance(value, bytes) else value
        # Nor may a code string have accents, and yet "HÜFTE" is sent: parted at its Ü it would be no word at all.
        plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
        return _NOT_CODE_STRING.sub(" ", plain.upper()).strip()[:64].strip()

    def _laterality(self, keyword: str) -> str:
        value = self._code_string(keyword)
        return self._kept(keyword, value, value if value in {"R", "L", "B", "U"} else "")

    def _sides(self) -> Sides:
        procedures = [item._text("CodeMeaning") for item in self._items("ProcedureCodeSequence")]
        return Sides(
            image=self._laterality("ImageLaterality"),
            series=self._laterality("Laterality"),
            region=self._modified_side(),
            series_text=named_side(*map(self._text, ("SeriesDescription", "ProtocolName", "BodyPartExamined"))),
            study_text=named_side(*map(self._text, ("StudyDescription", "RequestedProcedureDescription")), *procedures),
        )

    def _modified_side(self) -> str:
        """The side by which the anatomic region is modified (PS3.16, CID 244); "" where two items differ."""
        sides = set()
        for region in self._items("AnatomicRegionSequence"):
            for modifier in region._items("AnatomicRegionModifierSequence"):
                sides.add(_SIDE_CODES.get(modifier._text("CodeValue")) or named_side(modifier._text("CodeMeaning")))
        sides.discard("")
        return sides.pop() if len(sides) == 1 else ""

    def _is_animal(self) -> bool:
        """Whether anything says so (PS3.3, C.7.1.1): what is only required of animals, or a species that is not ours.

        One word suffices, against whatever else says "human": a dog that is not read is no harm.
        """
        species = [(self._text("PatientSpeciesDescription"), "")]
        species += [(item._text("CodeMeaning"), item._text("CodeValue")) for item in self._items(_SPECIES)]
        breeds = [self._text("PatientBreedDescription")]
        breeds += [item._text("CodeMeaning") or item._text("CodeValue") for item in self._items(_BREEDS)]
        return (
            any(_is_other_species(meaning, code) for meaning, code in species)
            or any(_is_other_species(breed, "") for breed in breeds)
            or self._code_string("PatientSexNeutered") in {"ALTERED", "UNALTERED"}
            or self._code_string("ResponsiblePersonRole") == "OWNER"
        )

    def _is_urgent(self) -> bool:
        """By the priority of the requested procedure (PS3.3, C.4.11), or that of the study, which is retired."""
        requested = [self._text("RequestedProcedurePriority")]
        requested += [item._text("RequestedProcedurePriority") for item in self._items("RequestAttributesSequence")]
        return (
            any(priority.upper() in {"STAT", "HIGH"} for priority in requested)
            or self._code_string("StudyPriorityID") == "HIGH"
        )

    def _codes(self, keyword: str) -> tuple[Code, ...]:
        return tuple(code for item in self._items(keyword) if (code := item._code()) is not None)

    def _code(self) -> Code | None:
        value = next((v for v in (self._text(k) for k in ("CodeValue", "LongCodeValue", "URNCodeValue")) if v), "")
        scheme, meaning = self._text("CodingSchemeDesignator"), self._text("CodeMeaning")
        return Code(value, scheme, meaning) if value and meaning else None

    def _items(self, keyword: str) -> Iterator[_Reader]:
        try:
            tag = _tag(keyword)
            items = list(self._dataset[tag].value or ()) if tag in self._dataset else []
        except Exception:  # a sequence that cannot be parsed is one that is not there
            return
        for item in items:
            if isinstance(item, Dataset):
                yield _Reader(item, default_charset=self._default_charset, declared=self._declared)

    def _uid(self, keyword: str) -> str:
        text = self._ascii(keyword)
        if not text:
            raise HeaderError(f"{keyword} is missing")
        if not is_uid(text):
            raise HeaderError(f"{keyword} is not a valid UID")
        return text

    def _kept(self, keyword: str, sent: str, used: str) -> str:
        if sent and not used:
            self._unusable.add(keyword)
        return used

    def _date(self, keyword: str) -> str:
        text = self._ascii(keyword)
        return self._kept(keyword, text, _as_date(text))

    def _offset(self) -> str:
        text = self._ascii("TimezoneOffsetFromUTC")
        return self._kept("TimezoneOffsetFromUTC", text, _matching(_OFFSET, text))

    def _time(self, keyword: str) -> str:
        text = self._ascii(keyword)
        plain = text.replace(":", "") if _OLD_TIME.fullmatch(text) else text
        return self._kept(keyword, text, _matching(_TIME, plain))

    def _code_string(self, keyword: str) -> str:
        text = self._ascii(keyword)
        return self._kept(keyword, text, _matching(_CODE_STRING, text.split("\\")[0].strip().upper()))

    def _number(self, keyword: str, *, least: int | None = None) -> int | None:
        try:
            if dictionary_VR(keyword) == "IS":
                number = int(_matching(_INTEGER, self._ascii(keyword)))
            else:
                number = int(self._dataset[keyword].value)
        except Exception:  # missing, empty, several values, wrong length, not a number
            return None
        # IS ends at 32 bits (PS3.5, 6.2); beyond that neither the database nor a report can hold it.
        in_range = abs(number) < 2**31 and (least is None or number >= least)
        return number if in_range else None

    def _ascii(self, keyword: str) -> str:
        value = self._value(keyword)
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        return text.strip(" \0\t\r\n")

    def _text(self, keyword: str) -> str:
        value = self._value(keyword)
        text = self._decode(value, keyword) if isinstance(value, bytes) else value
        return _CONTROLS.sub("", text).strip()

    def _value(self, keyword: str) -> bytes | str:
        """Return the value as it was sent where that is still known: pydicom splits and decodes some names wrongly."""
        tag = _tag(keyword)
        if tag not in self._dataset:
            return ""
        try:
            element = self._dataset.get_item(tag)
            if isinstance(element, RawDataElement) and element.value is not None:
                return element.value
            return _plain(self._dataset[tag])
        except Exception:  # whatever a broken value brings about, it is a value that is not there
            return ""

    def _python_encodings(self) -> list[str]:
        terms = self._declared or (self._default_charset.split("\\") if self._default_charset else None)
        if terms is None:
            return []
        try:
            return list(charset.convert_encodings(list(terms)))
        except Exception:  # an unknown character set is no character set
            return []

    def _decode(self, raw: bytes, keyword: str) -> str:
        """Decode text (PS3.5, 6.1.2) without ever leaving U+FFFD behind.

        What the character set says is believed unless it cannot be: a sign that is none, or a control character of the
        upper half, which no text may hold and which almost every other encoding makes of its letters. An escape
        sequence says itself what follows, declared or not.
        """
        text = "\ufffd"
        encodings = self._encodings
        if _ESCAPE in raw:
            encodings = [*(encodings or [charset.default_encoding]), *_BY_ESCAPE]
        if encodings:
            # In two-byte sets "=" and "\" can be the half of a character: decode first, split afterwards.
            delimiters = _NAME_DELIMITERS if keyword.endswith("Name") else _TEXT_DELIMITERS
            with suppress(Exception):  # a codec that fails is a wrong declaration
                # Of some sets (GB 2312) pydicom leaves the escape sequences where they are.
                text = _ESCAPE_SEQUENCE.sub("", charset.decode_bytes(raw, encodings, delimiters))
            if not _UNLIKELY.search(text):
                return text
        if encodings:
            self._unusable.add("SpecificCharacterSet")
        with suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
        self._unusable.add("SpecificCharacterSet")
        if "\ufffd" not in text:
            return text
        with suppress(UnicodeDecodeError):
            return raw.decode("cp1252")
        return raw.decode("latin-1")


class _Encodings(dict[str, str]):
    """pydicom's table of character sets. What it does not find there it takes for the name of a codec, and gives up the
    whole file where Python cannot look that up: no codec has a null in its name (pydicom 3.0.2).
    """

    def __missing__(self, term: str) -> str:
        if "\0" in term:
            return charset.default_encoding
        raise KeyError(term)


charset.python_encoding = _Encodings(charset.python_encoding)
# Latin-9, which the standard has since 2022.
charset.python_encoding |= {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}
_BY_ESCAPE = [codec for term, codec in charset.python_encoding.items() if term.startswith("ISO 2022 IR")]

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

# warnings.catch_warnings() swaps a list of the whole process; one thread at a time keeps that list whole.
_quiet_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom, which warns and logs with the value it complains about, and that may be a name."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _muted.thread = True
        try:
            yield
        finally:
            _muted.thread = False


class _Muted(threading.local, logging.Filter):
    """Drops what is logged by a thread that is reading a header; other threads log as ever."""

    thread = False

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 (the signature is logging's)
        return not self.thread


_muted = _Muted()
logging.getLogger("pydicom").addFilter(_muted)


def _plain(element: DataElement) -> bytes | str:
    value = element.value
    if value is None:
        return ""
    if isinstance(value, PersonName) and isinstance(value.original_string, bytes):
        return value.original_string
    if isinstance(value, str | PersonName):
        return str(value)
    if isinstance(value, bytes):
        return value
    return "\\".join(str(part) for part in value) if isinstance(value, Sequence) else str(value)


def _matching(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""


def _as_date(text: str) -> str:
    if re.fullmatch(r"[0-9]{4}\.[0-9]{2}\.[0-9]{2}", text):  # as ACR-NEMA wrote it (PS3.5, 6.2, DA)
        text = text.replace(".", "")
    if not re.fullmatch(r"[0-9]{8}", text):
        return ""
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return ""
    return text


def _is_other_species(meaning: str, code: str) -> bool:
    if code in _HUMAN_CODES:
        return False
    named = words(meaning)
    denied = any(before in _NO_HUMAN and word in _HUMAN_WORDS for before, word in pairwise(named))
    human = not denied and not _HUMAN_WORDS.isdisjoint(named)
    return not human and (_says_something(meaning) if meaning else bool(code))


def _says_something(text: str) -> bool:
    """Whether there is more in it than a way of saying nothing, such as "N/A"."""
    return bool(set(words(text)) - _EMPTY_WORDS)


def _first(codes: Sequence[Code]) -> Code | None:
    return codes[0] if codes else None


def _from_dict(fields: Mapping[str, Any]) -> SourceHeader:
    known = {field.name for field in dataclasses.fields(SourceHeader)}
    values = {name: value for name, value in fields.items() if name in known}
    study = dict(values.get("study", {}))
    study["procedure_codes"] = tuple(Code(**code) for code in study.get("procedure_codes", ()))
    values["study"] = Study(**study)
    values["patient"] = Patient(**values.get("patient", {}))
    values["contributing_equipment"] = tuple(Equipment(**item) for item in values.get("contributing_equipment", ()))
    values["image_type"] = tuple(values.get("image_type", ()))
    values["sides"] = Sides(**values.get("sides", {}))
    values["unusable"] = tuple(values.get("unusable", ()))
    values["requests"] = tuple(_request_from(item) for item in values.get("requests", ()))
    for name in ("anatomic_region", "view_code"):
        if values.get(name) is not None:
            values[name] = Code(**values[name])
    return SourceHeader(**values)


def _request_from(fields: Mapping[str, Any]) -> Request:
    code = fields.get("procedure_code")
    return Request(**{**fields, "procedure_code": None if code is None else Code(**code)})
