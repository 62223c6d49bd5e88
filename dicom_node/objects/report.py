"""The Structured Report: Comprehensive 3D SR or Comprehensive SR with TID 1500, after IHE AIR (AI Results). Pure.

Built by the same content twice it is the same file, since every UID in it is a digest (`origin.digest_uid`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage

from dicom_node.headers import Code, Request, SourceHeader
from dicom_node.objects import anatomy, items
from dicom_node.objects.content import (
    FRACTURE,
    PRESENCE,
    Algorithm,
    Decision,
    FindingOutcome,
    ImageOutcome,
    Kind,
    Predecessor,
    ReportContent,
    findings,
    image_name,
    impression,
    study_decision,
)
from dicom_node.objects.observer import device_observer, language
from dicom_node.objects.origin import as_file, coded, contribute, date, digest_uid, local_time, put, refer, start
from dicom_node.objects.requests import Orders, orders
from dicom_node.services import is_image

BUILDER_VERSION = 2
"""Raise it with every change of what is rendered: the same outcomes then go out under a new UID."""

_SOP_CLASSES: dict[Kind, str] = {
    "comprehensive_3d": str(Comprehensive3DSRStorage),
    "comprehensive": str(ComprehensiveSRStorage),
}
SOP_CLASS_UID = _SOP_CLASSES["comprehensive_3d"]


def build_report(content: ReportContent) -> bytes:
    """Build the report as a complete DICOM file (PS3.10), explicit VR little endian, in UTF-8.

    The same content always gives the same bytes. Content Date and Time are in the source's own offset from UTC where it
    declared one, since Study Date and Time beside them are; else in UTC. The Contribution DateTime carries its offset.
    """
    asked = orders(image.header for image in content.images)
    document = _header(content, asked)
    # The Content Sequence has the highest tag of all attributes.
    return as_file(document) + items.content_sequence(_tree(content, asked))


def sop_class_uid(kind: Kind) -> str:
    """The SOP class of a kind of report."""
    return _SOP_CLASSES[kind]


def render_report_uid(content: ReportContent) -> str:
    """The report's SOP Instance UID: `2.25.` + 128 bits of a digest of everything rendered but the time of making."""
    return digest_uid("report", _rendered(content))


def render_series_uid(content: ReportContent) -> str:
    """The report's Series Instance UID: every report has a series of its own."""
    return digest_uid("series", _rendered(content))


# The digests.


def _rendered(content: ReportContent) -> dict[str, Any]:
    first = content.images[0].header
    return {
        "builder": BUILDER_VERSION,
        "kind": content.kind,
        "installation_uid": content.installation_uid,
        "device": dataclasses.asdict(content.device),
        "algorithm": dataclasses.asdict(content.algorithm),
        "series": [content.series_number, content.series_description],
        "predecessor": content.predecessor and dataclasses.asdict(content.predecessor),
        "patient": dataclasses.asdict(first.patient),
        "study": dataclasses.asdict(first.study),
        "orders": dataclasses.asdict(orders(image.header for image in content.images)),
        "images": [_rendered_image(image) for image in content.images],
    }


def _rendered_image(image: ImageOutcome) -> dict[str, Any]:
    header = dataclasses.asdict(image.header)
    return {
        "header": {name: header[name] for name in _RENDERED_OF_A_HEADER},
        "side": anatomy.side(image.header),
        "study_date": image.header.study.date,
        "readings": [dataclasses.asdict(reading) for reading in image.readings],
        "not_analysed": image.not_analysed,
        "algorithm": image.algorithm and dataclasses.asdict(image.algorithm),
    }


# A change of any other attribute changes nothing in the report, and so brings no new one.
_RENDERED_OF_A_HEADER = (
    "sop_class_uid",
    "sop_instance_uid",
    "series_instance_uid",
    "study_instance_uid",
    "modality",
    "body_part_examined",
    "anatomic_region",
    "view_position",
    "view_code",
    "rows",
    "columns",
)


# The header of the document.


def _header(content: ReportContent, asked: Orders) -> Dataset:
    """Everything but the content tree (PS3.3, A.35.3 and A.35.13)."""
    first = content.images[0].header
    header = replace(first, study=replace(first.study, accession_number=asked.accession_number))
    document = start(
        header,
        content.device,
        UID(sop_class_uid(content.kind)),
        modality="SR",
        uid=render_report_uid(content),
        series_uid=render_series_uid(content),
    )
    document.SeriesNumber, document.InstanceNumber = content.series_number, 1
    document.SeriesDescription = content.series_description
    document.CompletionFlag, document.VerificationFlag = "COMPLETE", "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(content)]
    if asked.requests:
        document.ReferencedRequestSequence = [_requested(request) for request in asked.requests]
    if content.predecessor is not None:
        document.PredecessorDocumentsSequence = [_previous(content, content.predecessor)]
    document.ValueType, document.ContinuityOfContent = "CONTAINER", "CONTINUOUS"
    document.ConceptNameCodeSequence = [coded(codes.cid7021.ImagingMeasurementReport)]
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "1500"
    document.ContentTemplateSequence = [template]
    made = local_time(header, content.created_at)
    date(document, header, made)
    contribute(document, content.device, made)
    return document


def _evidence(content: ReportContent) -> Dataset:
    """All instances that the tree names, by series (PS3.3, C.17.2.3): those of the study, read or not."""
    series: dict[str, list[Dataset]] = {}
    for image in content.images:
        series.setdefault(image.header.series_instance_uid, []).append(refer(image.header))
    return _of_the_study(content, series)


def _previous(content: ReportContent, predecessor: Predecessor) -> Dataset:
    document = Dataset()
    document.ReferencedSOPClassUID = sop_class_uid(content.kind)
    document.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
    return _of_the_study(content, {predecessor.series_instance_uid: [document]})


def _of_the_study(content: ReportContent, series: Mapping[str, list[Dataset]]) -> Dataset:
    """Instances of the study, by their series (PS3.3, Table C.17-3)."""
    study = Dataset()
    study.StudyInstanceUID = content.images[0].header.study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_instance_uid
        item.ReferencedSOPSequence = instances
        study.ReferencedSeriesSequence.append(item)
    return study


def _requested(request: Request) -> Dataset:
    """An item of the Referenced Request Sequence (PS3.3, C.17.2): what is not known is empty, and present."""
    item = Dataset()
    values = {
        "StudyInstanceUID": request.study_instance_uid,
        "AccessionNumber": request.accession_number,
        "PlacerOrderNumberImagingServiceRequest": request.placer_order,
        "FillerOrderNumberImagingServiceRequest": request.filler_order,
        "RequestedProcedureID": request.procedure_id,
        "RequestedProcedureDescription": request.description,
    }
    for keyword, value in values.items():
        put(item, keyword, value)
    code = request.procedure_code
    item.ReferencedStudySequence = []
    item.RequestedProcedureCodeSequence = (
        [coded(SrCode(code.value, code.scheme, code.meaning))]
        if code is not None and anatomy.is_usable(code.value, code.scheme, code.meaning)
        else []
    )
    return item


# The content tree.

_IMAGING_PROCEDURE = SrCode("363679005", "SCT", "Imaging procedure")
_QUALITATIVE_EVALUATIONS = SrCode("C0034375", "UMLS", "Qualitative Evaluations")
_SOURCE = SrCode("260753009", "SCT", "Source")
_FINDING_SITE = SrCode("363698007", "SCT", "Finding Site")
_LATERALITY = SrCode("272741003", "SCT", "Laterality")
_PIXELS = SrCode("{pixels}", "UCUM", "Pixels")
_PERCENT = SrCode("%", "UCUM", "Percent")
_PRESENCE = {decision: SrCode(code.value, code.scheme, code.meaning) for decision, code in PRESENCE.items()}
_LABELS: dict[Decision, str] = {
    "fracture": "fracture found",
    "no_fracture": "no fracture found",
    "undetermined": "undetermined",
}


def _tree(content: ReportContent, asked: Orders) -> Iterator[bytes]:
    """TID 1500 "Measurement Report", below its root."""
    yield language()
    yield from device_observer(content.installation_uid, content.device)
    for procedure in _procedures(asked.procedures):
        yield items.code(codes.DCM.ProcedureReported, procedure, items.HAS_CONCEPT_MOD)
    yield _library(content)
    yield _measurements(content)
    yield _evaluations(content)


def _procedures(found: Sequence[Code]) -> list[SrCode]:
    usable = [
        SrCode(code.value, code.scheme, code.meaning)
        for code in found
        if anatomy.is_usable(code.value, code.scheme, code.meaning)
    ]
    return usable or [_IMAGING_PROCEDURE]


def _library(content: ReportContent) -> bytes:
    """TID 1600 "Image Library": every image of the study, analysed or not."""
    entries = [
        _reference(image.header, items.CONTAINS, *_descriptors(number, image))
        for number, image in enumerate(content.images, start=1)
        if is_image(image.header.sop_class_uid)
    ]
    group = [items.container(codes.DCM.ImageLibraryGroup, *entries)] if entries else []
    return items.container(codes.DCM.ImageLibrary, *group)


def _descriptors(number: int, image: ImageOutcome) -> Iterator[bytes]:
    """TID 1602 and 1603, as far as the source knows."""
    header = image.header
    told = {
        codes.DCM.Modality: anatomy.modality(header),
        codes.DCM.ImageLaterality: anatomy.laterality(header),
        codes.DCM.ImageView: anatomy.image_view(header),
    }
    for name, value in told.items():
        if value is not None:
            yield items.code(name, value, items.HAS_ACQ_CONTEXT)
    if header.study.date:
        yield items.date(codes.DCM.StudyDate, header.study.date, items.HAS_ACQ_CONTEXT)
    if header.rows:
        yield items.number(codes.DCM.PixelDataRows, header.rows, _PIXELS, items.HAS_ACQ_CONTEXT)
    if header.columns:
        yield items.number(codes.DCM.PixelDataColumns, header.columns, _PIXELS, items.HAS_ACQ_CONTEXT)
    if image.not_analysed is not None:
        yield items.text(codes.DCM.Comment, _not_analysed(number, image), items.HAS_ACQ_CONTEXT)


def _measurements(content: ReportContent) -> bytes:
    # Stands even when it is empty: OHIF dereferences it unchecked.
    return items.container(
        codes.DCM.ImagingMeasurements,
        *(
            _group(content, number, image, reading)
            for number, image in enumerate(content.images, start=1)
            for reading in image.readings
        ),
    )


def _group(content: ReportContent, number: int, image: ImageOutcome, reading: FindingOutcome) -> bytes:
    """One Measurement Group: TID 1410 where a region can be shown, else TID 1501.

    Only "Present" ever carries a region, so that a group cannot be taken for a fracture when it is not one.
    """
    header = image.header
    finding = SrCode(reading.code.value, reading.code.scheme, reading.code.meaning)
    shown = reading.decision == "fracture" and reading.region is not None
    return items.container(
        codes.DCM.MeasurementGroup,
        items.text(codes.DCM.TrackingIdentifier, _label(number, header, reading), items.HAS_OBS_CONTEXT),
        items.uid(codes.DCM.TrackingUniqueIdentifier, _tracking_uid(content, header, reading), items.HAS_OBS_CONTEXT),
        items.code(codes.DCM.Finding, finding, items.CONTAINS),
        *_site(header),
        *_algorithm(image.algorithm or content.algorithm, reading),
        items.number(codes.DCM.CertaintyOfFinding, round(100 * reading.probability, 1), _PERCENT, items.CONTAINS),
        items.code(finding, _PRESENCE[reading.decision], items.CONTAINS),
        _region(header, reading) if shown else _whole_image(header),
        template="1410" if shown else "1501",
    )


def _tracking_uid(content: ReportContent, header: SourceHeader, reading: FindingOutcome) -> str:
    # The same finding on the same image keeps its tracking UID in the reports that follow (PS3.16, TID 4108).
    return digest_uid("tracking", [content.installation_uid, header.sop_instance_uid, dataclasses.asdict(reading.code)])


def _label(number: int, header: SourceHeader, reading: FindingOutcome) -> str:
    if reading.code == FRACTURE:
        return f"{image_name(number, header)}: {_LABELS[reading.decision]}"
    return f"{image_name(number, header)}: {reading.code.meaning}: {_PRESENCE[reading.decision].meaning.lower()}"


def _algorithm(algorithm: Algorithm, reading: FindingOutcome) -> Iterator[bytes]:
    """TID 4019."""
    yield items.text(codes.DCM.AlgorithmName, algorithm.name, items.HAS_CONCEPT_MOD)
    yield items.text(codes.DCM.AlgorithmVersion, algorithm.version, items.HAS_CONCEPT_MOD)
    yield items.text(codes.DCM.AlgorithmManufacturer, algorithm.manufacturer, items.HAS_CONCEPT_MOD)
    for parameter in (
        f"absent_below={reading.absent_below:g}",
        f"present_from={reading.present_from:g}",
        f"bundle_sha256={algorithm.bundle_sha256}",
    ):
        yield items.text(codes.DCM.AlgorithmParameters, parameter, items.HAS_CONCEPT_MOD)


def _site(header: SourceHeader) -> Iterator[bytes]:
    region, side = anatomy.anatomic_region(header), anatomy.laterality(header)
    if region is None:
        return
    paired = [] if side is None else [items.code(_LATERALITY, side, items.HAS_CONCEPT_MOD)]
    yield items.code(_FINDING_SITE, region, items.HAS_CONCEPT_MOD, *paired)


def _region(header: SourceHeader, reading: FindingOutcome) -> bytes:
    """A box, although the record has the outline of the heatmap's cells: its steps are the grid's, not the bone's.

    A viewer draws a box as "look here" and steps as if somebody had traced an edge; and a box never crosses itself.
    """
    assert reading.region is not None  # noqa: S101 (the caller asked)
    xmin, ymin, xmax, ymax = reading.region
    outline = [(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)]
    source = items.reference(_SOURCE, "IMAGE", header.sop_class_uid, header.sop_instance_uid, items.SELECTED_FROM)
    return items.polyline(codes.DCM.ImageRegion, outline, items.CONTAINS, source)


def _whole_image(header: SourceHeader) -> bytes:
    return items.reference(
        codes.DCM.SourceOfMeasurement, "IMAGE", header.sop_class_uid, header.sop_instance_uid, items.CONTAINS
    )


def _evaluations(content: ReportContent) -> bytes:
    """TID 1500, rows 12 to 14: the study as a whole, in codes and in plain text, and what was not analysed."""
    told = [items.text(codes.DCM.Impression, impression(content).text, items.CONTAINS)]
    for code in findings(content):
        presence = _PRESENCE[study_decision(content, code)]
        told.append(items.code(SrCode(code.value, code.scheme, code.meaning), presence, items.CONTAINS))
    for number, image in enumerate(content.images, start=1):
        if image.not_analysed is not None:
            source = _reference(image.header, items.INFERRED_FROM)
            told.append(items.text(codes.DCM.Comment, _not_analysed(number, image), items.CONTAINS, source))
    return items.container(_QUALITATIVE_EVALUATIONS, *told)


def _not_analysed(number: int, image: ImageOutcome) -> str:
    assert image.not_analysed is not None  # noqa: S101 (the caller asked)
    reason = image.not_analysed
    return f"{image_name(number, image.header)}: not analysed ({reason.value}). {reason.sentence}"


def _reference(header: SourceHeader, relationship: str, *children: bytes) -> bytes:
    # Presentation states, reports and private objects are named by a COMPOSITE item.
    kind = "IMAGE" if is_image(header.sop_class_uid) else "COMPOSITE"
    return items.reference(_SOURCE, kind, header.sop_class_uid, header.sop_instance_uid, relationship, *children)
