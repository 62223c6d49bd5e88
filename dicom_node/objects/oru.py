"""The report as an HL7 v2.5.1 message, ORU^R01, for whom no Structured Report reaches. Pure: content in, bytes out.

It says what the Structured Report says, and no more: the impression, the decision on each finding for the study and for
each image with its certainty, what was not analysed and why, by which algorithm. Every result is preliminary (OBR-25
and each OBX-11 are P): a person has not seen it. hl7apy puts the message together and checks it against the structures
of 2.5.1; every text is escaped here before, since hl7apy leaves alone what looks like an escape sequence already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.exceptions import HL7apyException

from dicom_node.headers import Code, Patient, SourceHeader
from dicom_node.objects import anatomy
from dicom_node.objects.content import (
    DISCLAIMER,
    FRACTURE,
    PRESENCE,
    Algorithm,
    Decision,
    FindingOutcome,
    ImageOutcome,
    ReportContent,
    impression,
    study_decision,
)
from dicom_node.objects.origin import digest_uid
from dicom_node.objects.recognise import UID_PREFIX
from models.reasons import Reason

BUILDER_VERSION = 1
"""Raise it with every change of what is rendered: the same outcomes then go out under a new UID."""
KIND = "hl7_oru"
"""What such a report is called on record."""
_CONTROL_ID_CHARACTERS = 20  # MSH-10

_STUDY = Code("113014", "DCM", "DICOM Study")
_IMPRESSION = "19005-8^Radiology Imaging study [Impression] (narrative)^LN^121073^Impression^DCM"
_CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
_ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
_ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
_ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
_COMMENT = Code("121106", "DCM", "Comment")
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


def build_oru(
    content: ReportContent,
    *,
    receiving_application: str = "",
    receiving_facility: str = "",
    report_sop_instance_uid: str = "",
) -> bytes:
    """Build the message, in UTF-8, each segment ended by a carriage return. The same content gives the same bytes.

    Parameters
    ----------
    receiving_application, receiving_facility
        MSH-5 and MSH-6.
    report_sop_instance_uid
        Of the Structured Report that says the same, where one is sent to anybody.

    Raises
    ------
    ValueError
        If hl7apy finds a fault; without a word of what is in the message.
    """
    lines = _lines(content, receiving_application, receiving_facility, report_sop_instance_uid)
    return _checked(_dated(lines, content, _uid(lines)))


def render_oru_uid(
    content: ReportContent,
    *,
    receiving_application: str = "",
    receiving_facility: str = "",
    report_sop_instance_uid: str = "",
) -> str:
    """The message's UID: `2.25.` + 128 bits of a digest of everything rendered but the time of making.

    No HL7 field holds it: the first 80 bits, in hexadecimal, are the message's control id (MSH-10).
    """
    return _uid(_lines(content, receiving_application, receiving_facility, report_sop_instance_uid))


def _uid(lines: list[str]) -> str:
    return digest_uid(KIND, [BUILDER_VERSION, lines])


def _control_id(uid: str) -> str:
    return f"{int(uid.removeprefix(UID_PREFIX)):032X}"[:_CONTROL_ID_CHARACTERS]


def _checked(lines: list[str]) -> bytes:
    """Put the segments together into the message's groups, and check it."""
    header, patient, order, *observations = lines
    try:
        message = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.TOLERANT)
        message.msh = header
        result = message.add_group("ORU_R01_PATIENT_RESULT")
        result.add_group("ORU_R01_PATIENT").pid = patient
        ordered = result.add_group("ORU_R01_ORDER_OBSERVATION")
        ordered.obr = order
        for line in observations:
            ordered.add_group("ORU_R01_OBSERVATION").obx = line
        message.validate()
        text: str = message.to_er7()
    except HL7apyException as error:
        raise ValueError(f"not an HL7 message: {type(error).__name__}") from None  # its text holds the value
    return (text + "\r").encode()


# The segments. What is empty at the end of one is left out.

# They stand for what the UID is not made of; no text has such characters.
_MADE_AT, _CONTROL_ID = "\x01", "\x02"


def _dated(lines: list[str], content: ReportContent, uid: str) -> list[str]:
    made_at = content.created_at.strftime("%Y%m%d%H%M%S+0000")
    return [line.replace(_MADE_AT, made_at).replace(_CONTROL_ID, _control_id(uid)) for line in lines]


def _lines(content: ReportContent, application: str, facility: str, report_uid: str) -> list[str]:
    header = content.images[0].header
    observations = [
        _segment("OBX", {1: str(number), **fields, 11: "P"})
        for number, fields in enumerate(_observations(content, report_uid), start=1)
    ]
    return [_message_header(content, application, facility), _patient(header), _order(header), *observations]


def _message_header(content: ReportContent, application: str, facility: str) -> str:
    fields = {
        3: _text(content.device.station_ae_title or content.device.model),
        4: f"^{_text(content.installation_uid)}^ISO",
        5: _text(application),
        6: _text(facility),
        7: _MADE_AT,
        9: "ORU^R01^ORU_R01",
        10: _CONTROL_ID,
        11: "P",
        12: "2.5.1",
        18: "UNICODE UTF-8",
    }
    # The field separator itself is MSH-1.
    return "MSH|^~\\&|" + _joined(fields, first=3)


def _patient(header: SourceHeader) -> str:
    patient = header.patient
    return _segment(
        "PID",
        {1: "1", 3: _identifier(header), 5: _names(patient), 7: _date(patient.birth_date), 8: _sex(patient.sex)},
    )


def _identifier(header: SourceHeader) -> str:
    """CX. HL7 wants one: without a Patient ID it is the study's UID, an anonymous identifier that fits nobody else."""
    identifier = _text(header.patient.id)
    if not identifier:
        return f"{_text(header.study_instance_uid)}^^^^ANON"
    return f"{identifier}^^^{_text(header.patient.issuer)}^PI"


def _names(patient: Patient) -> str:
    """XPN, one for each group of the PN (PS3.5 6.2.1): alphabetic, ideographic and phonetic, of table 4000."""
    names = []
    for group, representation in zip(patient.name.split("="), "AIP", strict=False):
        family, given, middle, prefix, suffix = (_text(part) for part in [*group.split("^"), *[""] * 5][:5])
        if family or given or middle or prefix or suffix:
            names.append(f"{family}^{given}^{middle}^{suffix}^{prefix}^^L^{representation}")
    return "~".join(names) or "^^^^^^U"


def _sex(sex: str) -> str:
    return sex if sex in ("M", "F", "O") else ""


def _order(header: SourceHeader) -> str:
    """The order is known by its accession number only, which is the filler's number in IHE's RAD-128."""
    study = header.study
    accession = _text(study.accession_number)
    return _segment(
        "OBR",
        {
            1: "1",
            3: accession or _text(header.study_instance_uid),
            4: _procedure(header),
            7: _moment(header),
            18: accession,
            22: _MADE_AT,
            24: "RAD",
            25: "P",
        },
    )


def _procedure(header: SourceHeader) -> str:
    usable = [code for code in header.study.procedure_codes if anatomy.is_usable(code.value, code.scheme, code.meaning)]
    # CE has room for two.
    return "^".join(_code(code) for code in (usable or [_IMAGING_PROCEDURE])[:2])


def _observations(content: ReportContent, report_uid: str) -> Iterator[dict[int, str]]:
    header = content.images[0].header
    yield {2: "ST", 3: _code(_STUDY), 5: _text(header.study_instance_uid)}
    if report_uid:
        # As in IHE's RAD-28.
        yield {2: "ST", 3: "^SR Instance UID", 5: _text(report_uid)}
    yield {2: "TX", 3: _IMPRESSION, 5: _text(impression(content).text)}
    for finding in _findings(content):
        yield _decided(finding, study_decision(content, finding), "")
    for number, image in enumerate(content.images, start=1):
        if image.not_analysed is not Reason.NOT_AN_IMAGE:
            yield from _of_image(content, number, image)
    yield from _of_algorithm(content.algorithm, "")
    yield {2: "TX", 3: _code(_COMMENT), 5: _text(f"{DISCLAIMER}.")}


def _findings(content: ReportContent) -> list[Code]:
    found = [reading.code for image in content.images for reading in image.readings]
    return list(dict.fromkeys(found)) or [FRACTURE]


def _of_image(content: ReportContent, number: int, image: ImageOutcome) -> Iterator[dict[int, str]]:
    """Of one image, by its number as observation sub-ID: `2`, and for each finding on it `2.1`, `2.2`."""
    yield {2: "ST", 3: "^SOP Instance UID", 4: str(number), 5: _text(image.header.sop_instance_uid)}
    if image.not_analysed is not None:
        said = f"Image {number} was not analysed. {image.not_analysed.sentence}"
        yield {2: "TX", 3: _code(_COMMENT), 4: str(number), 5: _text(said)}
    for place, reading in enumerate(image.readings, start=1):
        sub_id = f"{number}.{place}"
        yield _decided(reading.code, reading.decision, sub_id)
        yield {
            2: "NM",
            3: _code(_CERTAINTY),
            4: sub_id,
            5: _percent(reading.probability),
            6: "%^Percent^UCUM",
            7: _text(_thresholds(reading)),
        }
    if image.algorithm is not None and image.algorithm != content.algorithm:
        yield from _of_algorithm(image.algorithm, str(number))


def _decided(finding: Code, decision: Decision, sub_id: str) -> dict[int, str]:
    # No flag says "normal": that is for a person to say.
    flag = "A" if decision == "fracture" else ""
    return {2: "CWE", 3: _code(finding), 4: sub_id, 5: _code(PRESENCE[decision]), 8: flag}


def _thresholds(reading: FindingOutcome) -> str:
    return f"absent below {_percent(reading.absent_below)}, present from {_percent(reading.present_from)}"


def _of_algorithm(algorithm: Algorithm, sub_id: str) -> Iterator[dict[int, str]]:
    values = {
        _ALGORITHM_NAME: algorithm.name,
        _ALGORITHM_VERSION: algorithm.version,
        _ALGORITHM_PARAMETERS: f"bundle sha256: {algorithm.bundle_sha256}",
    }
    for name, value in values.items():
        yield {2: "ST", 3: _code(name), 4: sub_id, 5: _text(value)}


# The fields.

_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NULL = '""'
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d)?)?", re.ASCII)


def _text(value: str) -> str:
    """Escape what HL7 would take for its own; line breaks, which end segments, are spaces.

    HL7's null, two quotation marks that got into a header from a worklist, would delete what the receiver has.
    """
    whole = value.encode("utf-8", "replace").decode()  # no halves of characters, which no UTF-8 holds
    line = _CONTROLS.sub(" ", whole).strip()
    return "" if line == _NULL else line.translate(_ESCAPES)


def _code(code: Code) -> str:
    return f"{_text(code.value)}^{_text(code.meaning)}^{_text(code.scheme)}"


def _percent(share: float) -> str:
    return str(round(100 * share, 1))


def _date(value: str) -> str:
    try:
        return datetime.strptime(value, "%Y%m%d").strftime("%Y%m%d") if len(value) == 8 else ""
    except ValueError:
        return ""


def _moment(header: SourceHeader) -> str:
    """DTM of the study, as far as the source knows it."""
    day = _date(header.study.date)
    if not day:
        return ""
    time = _TIME.match(header.study.time)
    return day + time[0] + header.timezone_offset if time else day


def _segment(name: str, fields: dict[int, str]) -> str:
    return f"{name}|" + _joined(fields, first=1)


def _joined(fields: dict[int, str], *, first: int) -> str:
    last = max((number for number, value in fields.items() if value), default=first)
    return "|".join(fields.get(number, "") for number in range(first, last + 1))
