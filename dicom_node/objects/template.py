"""The template check: what a report of Osteon's must hold, beyond what the validators of others look at.

None of them notices a missing observer type, tracking identifier or algorithm version, a wrong template identifier or a
wrong code meaning, and none knows the rules that keep a report safe to read. The rows below are those of PS3.16 (TID
1500 with 1204, 1001, 1004, 1600, 1410, 1501, 4019) as IHE AIR and this project narrow them. They are written from
there and not shared with the builder, which they check.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicom_node.headers import is_uid, quiet
from dicom_node.objects.content import DISCLAIMER

_MOD, _OBS, _ACQ = "HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT"
_CONTAINS, _INFERRED, _SELECTED = "CONTAINS", "INFERRED FROM", "SELECTED FROM"
_FRACTURE = Code("125605004", "SCT", "Fracture of bone")
_PRESENT = Code("52101004", "SCT", "Present")
_ABSENT = Code("272519000", "SCT", "Absent")
_UNDETERMINED = Code("373068000", "SCT", "Undetermined")
_PRESENCE = (_PRESENT, _ABSENT, _UNDETERMINED)
_SOP_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage)
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_FILLED = (  # type 1, and what tells who made it
    *("ContentDate", "ContentTime", "SeriesNumber", "InstanceNumber"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
)
_PRESENT_OR_EMPTY = (  # type 2
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyID", "StudyDate", "StudyTime", "PerformedProcedureCodeSequence"),
    "ReferencedPerformedProcedureStepSequence",
)
_OF_A_REQUEST = (  # type 2
    *("AccessionNumber", "ReferencedStudySequence", "RequestedProcedureID", "RequestedProcedureDescription"),
    *("RequestedProcedureCodeSequence", "PlacerOrderNumberImagingServiceRequest"),
    "FillerOrderNumberImagingServiceRequest",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `where` counts the items from the root as in "1.9.2", "" is the header."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where or 'header'}: {self.what}"


@dataclass(frozen=True)
class Row:
    """A row of a template: a content item that a container may or must hold, in this order.

    Parameters
    ----------
    relationships
        To the item above.
    most
        None: as many as there are.
    values
        The codes, or units, that are allowed; none: any.
    foreign
        The value is the source's code, whose meaning may be in the source's words.
    templates
        The template identifiers (DCMR) of which the item has to name one.
    """

    name: Code
    value_types: tuple[str, ...]
    relationships: tuple[str, ...]
    least: int = 1
    most: int | None = 1
    values: tuple[Code, ...] = ()
    foreign: bool = False
    templates: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


def _row(value: str, meaning: str, kind: str, relationship: str, scheme: str = "DCM", **more: object) -> Row:
    return Row(Code(value, scheme, meaning), tuple(kind.split("|")), (relationship,), **more)  # type: ignore[arg-type]


_SOURCE_NAME = ("260753009", "Source")
_PIXELS = (Code("{pixels}", "UCUM", "Pixels"),)
_LIBRARY_ENTRY = (
    _row("121139", "Modality", "CODE", _ACQ, least=0),
    _row("111027", "Image Laterality", "CODE", _ACQ, least=0),
    _row("111031", "Image View", "CODE", _ACQ, least=0),
    _row("111060", "Study Date", "DATE", _ACQ, least=0),
    _row("110910", "Pixel Data Rows", "NUM", _ACQ, least=0, values=_PIXELS),
    _row("110911", "Pixel Data Columns", "NUM", _ACQ, least=0, values=_PIXELS),
    _row("121106", "Comment", "TEXT", _ACQ, least=0),
)
_GROUP = (
    _row("112039", "Tracking Identifier", "TEXT", _OBS),
    _row("112040", "Tracking Unique Identifier", "UIDREF", _OBS),
    _row("121071", "Finding", "CODE", _CONTAINS),
    _row(
        "363698007",
        "Finding Site",
        "CODE",
        _MOD,
        "SCT",
        least=0,
        rows=(_row("272741003", "Laterality", "CODE", _MOD, "SCT", least=0),),
    ),
    _row("111001", "Algorithm Name", "TEXT", _MOD),
    _row("111003", "Algorithm Version", "TEXT", _MOD),
    _row("122405", "Algorithm Manufacturer", "TEXT", _MOD),
    _row("111002", "Algorithm Parameters", "TEXT", _MOD, most=None),
    _row("111012", "Certainty of Finding", "NUM", _CONTAINS, values=(Code("%", "UCUM", "Percent"),)),
)
# Behind the finding's own row: where it was seen.
_REGION = _row("111030", "Image Region", "SCOORD", _CONTAINS, rows=(_row(*_SOURCE_NAME, "IMAGE", _SELECTED, "SCT"),))
_WHOLE_IMAGE = _row("121112", "Source of Measurement", "IMAGE", _CONTAINS)
_ROOT = Row(
    codes.cid7021.ImagingMeasurementReport,
    ("CONTAINER",),
    (),
    templates=("1500",),
    rows=(
        _row(
            "121049",
            "Language of Content Item and Descendants",
            "CODE",
            _MOD,
            values=(Code("en-US", "RFC5646", "English (United States)"),),
        ),
        _row("121005", "Observer Type", "CODE", _OBS, values=(Code("121007", "DCM", "Device"),)),
        _row("121012", "Device Observer UID", "UIDREF", _OBS),
        _row("121013", "Device Observer Name", "TEXT", _OBS),
        _row("121014", "Device Observer Manufacturer", "TEXT", _OBS),
        _row("121015", "Device Observer Model Name", "TEXT", _OBS),
        _row("121016", "Device Observer Serial Number", "TEXT", _OBS),
        _row("121058", "Procedure reported", "CODE", _MOD, most=None, foreign=True),
        _row(
            "111028",
            "Image Library",
            "CONTAINER",
            _CONTAINS,
            rows=(
                _row(
                    "126200",
                    "Image Library Group",
                    "CONTAINER",
                    _CONTAINS,
                    least=0,
                    rows=(_row(*_SOURCE_NAME, "IMAGE", _CONTAINS, "SCT", most=None, rows=_LIBRARY_ENTRY),),
                ),
            ),
        ),
        _row(
            "126010",
            "Imaging Measurements",
            "CONTAINER",
            _CONTAINS,
            rows=(
                _row(
                    "125007",
                    "Measurement Group",
                    "CONTAINER",
                    _CONTAINS,
                    least=0,
                    most=None,
                    templates=("1410", "1501"),
                ),
            ),
        ),
        _row("C0034375", "Qualitative Evaluations", "CONTAINER", _CONTAINS, "UMLS"),
    ),
)
_COMMENT = _row(
    "121106",
    "Comment",
    "TEXT",
    _CONTAINS,
    least=0,
    most=None,
    rows=(_row(*_SOURCE_NAME, "IMAGE|COMPOSITE", _INFERRED, "SCT"),),
)
_IMPRESSION = _row("121073", "Impression", "TEXT", _CONTAINS)


def check_report(report: bytes) -> list[Problem]:
    """Return what is wrong with a report; nothing where all is well. Its problems quote codes, never the patient.

    Raises
    ------
    ValueError
        If the bytes are not a DICOM file with a content tree.
    """
    with quiet():
        try:
            root = pydicom.dcmread(BytesIO(report))
            has_tree = "ValueType" in root and root.get("ContentSequence") is not None
        except Exception:  # pydicom has no common class for what malformed bytes can bring about
            raise ValueError("the bytes are not a DICOM file") from None
        if not has_tree:
            raise ValueError("the object has no content tree")
        tree = (lambda root: _item(root, _root(root), "1"), _groups, _evaluations, _left_out, _evidence)
        checks = (_header, _orders, _predecessors, *tree)
        return list(dict.fromkeys(problem for check in checks for problem in _to_its_end(check(root))))


def _to_its_end(check: Iterator[Problem]) -> Iterator[Problem]:
    try:
        yield from check
    except Exception as error:  # an element that cannot be parsed, or an item without what its kind must have
        yield Problem("1", f"cannot be read to its end ({type(error).__name__})")


# The header.


def _header(root: Dataset) -> Iterator[Problem]:
    expected = {
        "Modality": "SR",
        "SpecificCharacterSet": "ISO_IR 192",
        "CompletionFlag": "COMPLETE",
        "VerificationFlag": "UNVERIFIED",
        "PreliminaryFlag": "PRELIMINARY",
    }
    for keyword, value in expected.items():
        if root.get(keyword) != value:
            yield Problem("", f"{keyword} is not {value}")
    yield from (Problem("", f"{keyword} is missing") for keyword in _PRESENT_OR_EMPTY if keyword not in root)
    yield from (Problem("", f"{keyword} is missing or empty") for keyword in _FILLED if not root.get(keyword))
    yield from (Problem("", f"{word} is not a UID") for word in _UIDS if not is_uid(str(root.get(word, ""))))
    if root.SOPClassUID not in _SOP_CLASSES:
        yield Problem("", "the SOP class is neither Comprehensive 3D SR nor Comprehensive SR")
    meta = root.file_meta
    if (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) != (root.SOPClassUID, root.SOPInstanceUID):
        yield Problem("", "the file meta information names another instance")
    if meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        yield Problem("", "the transfer syntax is not explicit VR little endian")
    equipment = root.get("ContributingEquipmentSequence", ())
    if not any(_is(item.PurposeOfReferenceCodeSequence[0], codes.DCM.ProcessingEquipment) for item in equipment):
        yield Problem("", "no Contributing Equipment is the Processing Equipment")


def _orders(root: Dataset) -> Iterator[Problem]:
    """The requests (PS3.3, C.17.2), and the study's accession number, which is theirs or, if they differ, none."""
    numbers = set()
    for request in root.get("ReferencedRequestSequence", ()):
        if not is_uid(str(request.get("StudyInstanceUID", ""))):
            yield Problem("", "a request without a Study Instance UID")
        for keyword in _OF_A_REQUEST:
            if keyword not in request:
                yield Problem("", f"a request without {keyword}")
        numbers.add(str(request.get("AccessionNumber") or ""))
    numbers.discard("")
    if numbers and str(root.get("AccessionNumber") or "") != (min(numbers) if len(numbers) == 1 else ""):
        yield Problem("", "AccessionNumber is not that of the requests, or one of several")


def _predecessors(root: Dataset) -> Iterator[Problem]:
    """A report replaces one of its own SOP class, in its own study, and not itself (PS3.3, C.17.2.2)."""
    for study in root.get("PredecessorDocumentsSequence", ()):
        if study.get("StudyInstanceUID") != root.StudyInstanceUID:
            yield Problem("", "a predecessor of another study")
        for series in study.ReferencedSeriesSequence:
            for document in series.ReferencedSOPSequence:
                if document.ReferencedSOPClassUID != root.SOPClassUID:
                    yield Problem("", "a predecessor of another SOP class")
                if document.ReferencedSOPInstanceUID == root.SOPInstanceUID:
                    yield Problem("", "a predecessor of itself")


# The rows.


def _root(root: Dataset) -> Row:
    """The rows of the evaluations name the findings of the groups; without any group, the one that is looked for."""
    try:
        findings = list(dict.fromkeys(_finding(group) for _, group in _measurement_groups(root))) or [_FRACTURE]
    except Exception:  # whoever checks the groups says so
        findings = [_FRACTURE]
    told = [Row(finding, ("CODE",), (_CONTAINS,), values=_PRESENCE) for finding in findings]
    *others, evaluations = _ROOT.rows
    return replace(_ROOT, rows=(*others, replace(evaluations, rows=(_IMPRESSION, *told, _COMMENT))))


def _item(item: Dataset, row: Row, where: str) -> Iterator[Problem]:
    """Check an item, whose concept name is that of `row`, and all below it."""
    yield from _name(item, row, where)
    if item.get("ValueType") not in row.value_types:
        yield Problem(where, f"{row.name.meaning} is a {item.get('ValueType')}, not a {' or '.join(row.value_types)}")
        return
    if row.relationships and item.get("RelationshipType") not in row.relationships:
        yield Problem(where, f"{row.name.meaning}: the relationship is not {' or '.join(row.relationships)}")
    if row.templates and _template(item) not in row.templates:
        yield Problem(where, f"{row.name.meaning}: the template is not {' or '.join(row.templates)} of DCMR")
    yield from _value(item, row, where)
    yield from _below(item, _rows_of(item, row), where)


def _name(item: Dataset, row: Row, where: str) -> Iterator[Problem]:
    name = _concept(item)
    if name is not None and name.meaning != row.name.meaning:
        yield Problem(where, f"the meaning of {_told(row.name)} is not {row.name.meaning!r}")


def _rows_of(item: Dataset, row: Row) -> tuple[Row, ...]:
    """A measurement group's rows name its finding."""
    if row.name.value == "125007":
        found = next((_coded(child) for child in _children(item) if _concept_is(child, "121071")), None)
        own = Row(found, ("CODE",), (_CONTAINS,), values=_PRESENCE) if found is not None else None
        seen = _REGION if _template(item) == "1410" else _WHOLE_IMAGE
        return (*_GROUP, *([own] if own is not None else []), seen)
    return row.rows


def _below(item: Dataset, rows: Sequence[Row], where: str) -> Iterator[Problem]:
    places = {(row.name.value, row.name.scheme_designator): number for number, row in enumerate(rows)}
    counts: Counter[int] = Counter()
    last = 0
    for number, child in enumerate(_children(item), start=1):
        here, name = f"{where}.{number}", _concept(child)
        place = None if name is None else places.get((name.value, name.scheme_designator))
        if place is None:
            yield Problem(here, f"{_told(name)} does not belong here")
            continue
        if place < last:
            yield Problem(here, f"{rows[place].name.meaning} stands behind {rows[last].name.meaning}")
        last = max(last, place)
        counts[place] += 1
        yield from _item(child, rows[place], here)
    for place, row in enumerate(rows):
        if counts[place] < row.least:
            yield Problem(where, f"{row.name.meaning} {_told(row.name)} is missing")
        if row.most is not None and counts[place] > row.most:
            yield Problem(where, f"{row.name.meaning} stands here {counts[place]} times")


def _value(item: Dataset, row: Row, where: str) -> Iterator[Problem]:
    """By Value Type (PS3.3, C.17.3.2.1)."""
    kind, name = item.ValueType, row.name.meaning
    if kind == "CODE":
        yield from _code(_coded(item), row, where)
    elif kind == "NUM":
        measured = item.get("MeasuredValueSequence")
        if not measured:
            yield Problem(where, f"{name} has no value")
        else:
            yield from _code(_read(measured[0].MeasurementUnitsCodeSequence[0]), row, where)
    elif kind == "TEXT" and not str(item.get("TextValue", "")).strip():
        yield Problem(where, f"{name} is empty")
    elif kind == "CONTAINER" and item.get("ContinuityOfContent") != "CONTINUOUS":
        yield Problem(where, f"{name}: ContinuityOfContent is not CONTINUOUS")
    elif kind == "UIDREF" and not is_uid(str(item.get("UID", ""))):
        yield Problem(where, f"{name} is not a UID")


def _code(code: Code, row: Row, where: str) -> Iterator[Problem]:
    if row.values and not any(_same(code, allowed) for allowed in row.values):
        yield Problem(where, f"{row.name.meaning}: {_told(code)} is none of {', '.join(map(_told, row.values))}")
        return
    meanings = {allowed.meaning for allowed in row.values if _same(code, allowed)} or _meanings().get(_key(code), set())
    if meanings and not row.foreign and code.meaning not in meanings:
        yield Problem(where, f"{row.name.meaning}: the meaning of {_told(code)} is not {min(meanings)!r}")


# What keeps a report safe to read.


def _groups(root: Dataset) -> Iterator[Problem]:
    """Rules of a measurement group that no row of the template states."""
    sizes = dict(_library(root))
    tracked: set[str] = set()
    for where, group in _measurement_groups(root):
        by_name = {code.value: child for child in _children(group) if (code := _concept(child)) is not None}
        presence = _presence(group)
        label = str(by_name["112039"].get("TextValue", "")) if "112039" in by_name else ""
        if presence in (_ABSENT, _UNDETERMINED) and not re.search(r"\b(no|absent|undetermined)\b", label):
            yield Problem(where, f"the label of a group that says {presence.meaning} could be taken for a finding")
        region = by_name.get("111030")
        if region is not None and presence != _PRESENT:
            yield Problem(where, "a region although the finding is not Present")
        if "111012" in by_name and not 0 <= _number(by_name["111012"]) <= 100:
            yield Problem(where, "Certainty of Finding is not between 0 and 100 %")
        uid = str(by_name["112040"].get("UID", "")) if "112040" in by_name else ""
        if uid in tracked:
            yield Problem(where, "another group has the same Tracking Unique Identifier")
        tracked.add(uid)
        seen = _image_of(group)
        if seen not in sizes:
            yield Problem(where, "its image does not stand in the Image Library")
        elif region is not None:
            yield from _outline(region, sizes[seen], where)


def _outline(region: Dataset, size: tuple[float, float], where: str) -> Iterator[Problem]:
    """A closed polygon within its image (PS3.3, C.18.6)."""
    numbers = [float(number) for number in region.get("GraphicData", ())]
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    if region.get("GraphicType") != "POLYLINE" or len(numbers) % 2 or len(points) < 4 or points[0] != points[-1]:
        yield Problem(where, "the region is not a closed POLYLINE")
    columns, rows = size
    if not all(0 <= x <= columns and 0 <= y <= rows for x, y in points):
        yield Problem(where, "the region reaches beyond its image")


def _evaluations(root: Dataset) -> Iterator[Problem]:
    """The study as a whole says what its groups say, and silence is never Absent."""
    for where, container in _named(root, "C0034375", "1"):
        text = next((str(c.get("TextValue", "")) for c in _children(container) if _concept_is(c, "121073")), "")
        if DISCLAIMER not in text:
            yield Problem(where, f"the impression does not say {DISCLAIMER!r}")
        for child in _children(container):
            finding = _concept(child)
            if child.get("ValueType") != "CODE" or finding is None:
                continue
            expected = _of_the_study(root, finding)
            if not _same(_coded(child), expected):
                yield Problem(where, f"{_told(finding)} of the study is not {expected.meaning}, as its images say")


def _left_out(root: Dataset) -> Iterator[Problem]:
    """Every image of the library was read, or it is said why not; and nothing else is spoken of."""
    library = {uid for uid, _ in _library(root)}
    read = {_image_of(group) for _, group in _measurement_groups(root)}
    comments = [child for _, container in _named(root, "C0034375", "1") for child in _children(container)]
    unread = {
        instance
        for comment in comments
        if _concept_is(comment, "121106")
        for child in _children(comment)
        if child.get("ValueType") == "IMAGE"
        for _, instance in _references(child)
    }
    if library - read - unread:
        yield Problem("1", f"{len(library - read - unread)} images of the library are neither read nor not analysed")
    if unread - library:
        yield Problem("1", f"{len(unread - library)} images that were not analysed do not stand in the Image Library")
    if unread & read:
        yield Problem("1", f"{len(unread & read)} images are read and not analysed")


def _of_the_study(root: Dataset, finding: Code) -> Code:
    groups = [group for _, group in _measurement_groups(root) if _same(_finding(group), finding)]
    said = [_presence(group) for group in groups]
    if _PRESENT in said:
        return _PRESENT
    images = {uid for uid, _ in _library(root)}
    everything = {_image_of(group) for group in groups} >= images and bool(images)
    return _ABSENT if everything and all(presence == _ABSENT for presence in said) else _UNDETERMINED


def _evidence(root: Dataset) -> Iterator[Problem]:
    """Every instance that the tree names is evidence (PS3.3, C.17.2.3), and all evidence is named."""
    sequence = [
        *root.get("CurrentRequestedProcedureEvidenceSequence", ()),
        *root.get("PertinentOtherEvidenceSequence", ()),
    ]
    evidence = {
        (str(instance.ReferencedSOPClassUID), str(instance.ReferencedSOPInstanceUID))
        for study in sequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    named = set(_references(root))
    if named - evidence:
        yield Problem("", f"{len(named - evidence)} instances of the tree are not in the evidence")
    if evidence - named:
        yield Problem("", f"{len(evidence - named)} instances of the evidence are not in the tree")


# Reading.


def _children(item: Dataset) -> Sequence[Dataset]:
    children: Sequence[Dataset] = item.get("ContentSequence", ())
    return children


def _named(item: Dataset, value: str, where: str) -> Iterator[tuple[str, Dataset]]:
    for number, child in enumerate(_children(item), start=1):
        if _concept_is(child, value):
            yield f"{where}.{number}", child


def _measurement_groups(root: Dataset) -> Iterator[tuple[str, Dataset]]:
    for where, container in _named(root, "126010", "1"):
        yield from _named(container, "125007", where)


def _library(root: Dataset) -> Iterator[tuple[str, tuple[float, float]]]:
    """The images of the library with their columns and rows; infinite where these are not told."""
    for _, library in _named(root, "111028", "1"):
        for _, group in _named(library, "126200", "1"):
            for _, entry in _named(group, "260753009", "1"):
                rows, columns = (
                    next((_number(child) for _, child in _named(entry, name, "1")), math.inf)
                    for name in ("110910", "110911")
                )
                yield str(entry.ReferencedSOPSequence[0].ReferencedSOPInstanceUID), (columns, rows)


def _references(item: Dataset) -> Iterator[tuple[str, str]]:
    for reference in item.get("ReferencedSOPSequence", ()) if item.get("ValueType") != "CONTAINER" else ():
        yield str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)
    for child in _children(item):
        yield from _references(child)


def _image_of(group: Dataset) -> str | None:
    return next((instance for _, instance in _references(group)), None)


def _finding(group: Dataset) -> Code:
    return next((_coded(child) for _, child in _named(group, "121071", "1")), Code("", "", ""))


def _presence(group: Dataset) -> Code | None:
    """What a group says of its finding; None where it says nothing that is known."""
    finding = _finding(group)
    for child in _children(group):
        name = _concept(child)
        if name is not None and _same(name, finding) and child.get("ValueType") == "CODE":
            return next((known for known in _PRESENCE if _same(known, _coded(child))), None)
    return None


def _concept(item: Dataset) -> Code | None:
    sequence = item.get("ConceptNameCodeSequence")
    return _read(sequence[0]) if sequence else None


def _concept_is(item: Dataset, value: str) -> bool:
    name = _concept(item)
    return name is not None and name.value == value


def _coded(item: Dataset) -> Code:
    return _read(item.ConceptCodeSequence[0])


def _read(code: Dataset) -> Code:
    return Code(
        str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeMeaning", ""))
    )


def _number(item: Dataset) -> float:
    measured = item.get("MeasuredValueSequence")
    return float(measured[0].NumericValue) if measured else math.nan


def _template(item: Dataset) -> str | None:
    for template in item.get("ContentTemplateSequence", ()):
        if template.get("MappingResource") == "DCMR":
            return str(template.get("TemplateIdentifier"))
    return None


def _is(dataset: Dataset, code: Code) -> bool:
    return _same(_read(dataset), code)


def _same(one: Code, other: Code) -> bool:
    """Whether two codes are one concept, whatever they say that it means."""
    return _key(one) == _key(other)


def _key(code: Code) -> tuple[str, str]:
    return code.value, code.scheme_designator


def _told(code: Code | None) -> str:
    return "an item without a name" if code is None else f"({code.value}, {code.scheme_designator})"


@cache
def _meanings() -> dict[tuple[str, str], set[str]]:
    """Every code of PS3.16 that pydicom knows, and what it means."""
    known: dict[tuple[str, str], set[str]] = {}
    for scheme in ("DCM", "SCT", "UCUM"):
        collection = getattr(codes, scheme)
        for keyword in collection.trait_names():
            code = getattr(collection, keyword)
            if not isinstance(code, Code):  # a few keywords are names of methods too
                continue
            known.setdefault(_key(code), set()).add(code.meaning)
    return known
