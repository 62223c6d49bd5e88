"""The Structured Report: Comprehensive 3D SR or Comprehensive SR with TID 1500, after IHE AIR (AI Results). Pure.

Built by the same content twice it is the same file, since every UID in it is a digest (`origin.digest_uid`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    Comprehensive3DSR,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DateContentItem,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicom_node.headers import Code, Request, SourceHeader
from dicom_node.objects import anatomy
from dicom_node.objects.content import (
    FRACTURE,
    Algorithm,
    Decision,
    FindingOutcome,
    ImageOutcome,
    Kind,
    ReportContent,
    image_name,
    impression,
    study_decision,
)
from dicom_node.objects.origin import CHARACTER_SET, as_file, contribute, date, digest_uid, identify, local_time, put
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
    header = content.images[0].header
    asked = orders(image.header for image in content.images)
    made = local_time(header, content.created_at)
    document = (Comprehensive3DSR if content.kind == "comprehensive_3d" else ComprehensiveSR)(
        evidence=[_evidence(image.header) for image in content.images],
        content=_skeleton(content),
        series_instance_uid=render_series_uid(content),
        series_number=content.series_number,
        sop_instance_uid=render_report_uid(content),
        instance_number=1,
        manufacturer=content.device.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=_previous(content) or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=CHARACTER_SET,
        series_description=content.series_description,
        manufacturer_model_name=content.device.model,
        device_serial_number=content.device.serial,
        software_versions=content.device.software_version,
        content_date=made.date(),
        content_time=made.time().replace(microsecond=0),
    )
    document.ContentSequence = _items(content, asked)
    identify(document, replace(header, study=replace(header.study, accession_number=asked.accession_number)))
    if asked.requests:
        document.ReferencedRequestSequence = [_requested(request) for request in asked.requests]
    if content.device.station_ae_title:
        document.StationName = content.device.station_ae_title
    date(document, header, made)
    contribute(document, content.device, made)
    return as_file(document)


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


def _evidence(header: SourceHeader) -> Dataset:
    """What highdicom asks of a source, and no more: it refuses, or logs, demographics that it does not like.

    The true ones are put in by `origin.identify`.
    """
    source = Dataset()
    source.SOPClassUID = header.sop_class_uid
    source.SOPInstanceUID = header.sop_instance_uid
    source.SeriesInstanceUID = header.series_instance_uid
    source.StudyInstanceUID = header.study_instance_uid
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(source, keyword, "")
    source.StudyDate = source.StudyTime = None
    return source


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
        [CodedConcept(code.value, code.scheme, code.meaning)]
        if code is not None and anatomy.is_usable(code.value, code.scheme, code.meaning)
        else []
    )
    return item


def _previous(content: ReportContent) -> list[Dataset]:
    if content.predecessor is None:
        return []
    previous = Dataset()
    previous.SOPClassUID = sop_class_uid(content.kind)
    previous.SOPInstanceUID = content.predecessor.sop_instance_uid
    previous.SeriesInstanceUID = content.predecessor.series_instance_uid
    previous.StudyInstanceUID = content.images[0].header.study_instance_uid
    return [previous]


# The content tree.

_CONTAINS = RelationshipTypeValues.CONTAINS
_ACQUIRED = RelationshipTypeValues.HAS_ACQ_CONTEXT
_IMAGING_PROCEDURE = SrCode("363679005", "SCT", "Imaging procedure")
_QUALITATIVE_EVALUATIONS = SrCode("C0034375", "UMLS", "Qualitative Evaluations")
_SOURCE = SrCode("260753009", "SCT", "Source")
_PIXELS = SrCode("{pixels}", "UCUM", "Pixels")
_PERCENT = SrCode("%", "UCUM", "Percent")
_ENGLISH_US = SrCode("en-US", "RFC5646", "English (United States)")
_PRESENCE: dict[Decision, SrCode] = {
    "fracture": SrCode("52101004", "SCT", "Present"),
    "no_fracture": SrCode("272519000", "SCT", "Absent"),
    "undetermined": SrCode("373068000", "SCT", "Undetermined"),
}
_LABELS: dict[Decision, str] = {
    "fracture": "fracture found",
    "no_fracture": "no fracture found",
    "undetermined": "undetermined",
}


def _skeleton(content: ReportContent) -> Dataset:
    """The root of TID 1500 with nothing but references, from which highdicom collects the evidence.

    The whole tree is put in afterwards: highdicom copies and parses anew what it is given, which takes longer than
    building it (80 ms against 35 ms for two images).
    """
    root = ContainerContentItem(name=codes.cid7021.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = ContentSequence([_reference(image.header, _CONTAINS) for image in content.images])
    return root


def _items(content: ReportContent, asked: Orders) -> ContentSequence:
    """TID 1500 "Measurement Report", below its root.

    Put together here and not by highdicom's MeasurementReport: that one writes an image library which needs Imager
    Pixel Spacing, has no row for the impression, and refuses a study in which no image could be analysed.
    """
    items = ContentSequence()
    items.extend(LanguageOfContentItemAndDescendants(CodedConcept.from_code(_ENGLISH_US)))
    items.extend(_observer(content))
    for procedure in _procedures(asked.procedures):
        items.append(_code(codes.DCM.ProcedureReported, procedure, RelationshipTypeValues.HAS_CONCEPT_MOD))
    items.append(_library(content))
    items.append(_measurements(content))
    items.append(_evaluations(content))
    return items


def _observer(content: ReportContent) -> ObservationContext:
    device = content.device
    attributes = DeviceObserverIdentifyingAttributes(
        uid=content.installation_uid,
        name=device.station_ae_title or device.model,
        manufacturer_name=device.manufacturer,
        model_name=device.model,
        serial_number=device.serial,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=CodedConcept.from_code(codes.DCM.Device), observer_identifying_attributes=attributes
        )
    )


def _procedures(found: Sequence[Code]) -> list[SrCode]:
    usable = [
        SrCode(code.value, code.scheme, code.meaning)
        for code in found
        if anatomy.is_usable(code.value, code.scheme, code.meaning)
    ]
    return usable or [_IMAGING_PROCEDURE]


def _library(content: ReportContent) -> ContainerContentItem:
    """TID 1600 "Image Library": every image of the study, analysed or not."""
    group = ContentSequence()
    for number, image in enumerate(content.images, start=1):
        if not is_image(image.header.sop_class_uid):
            continue
        entry = _reference(image.header, _CONTAINS)
        if descriptors := _descriptors(number, image):
            entry.ContentSequence = descriptors
        group.append(entry)
    library = _container(codes.DCM.ImageLibrary)
    if group:
        library.ContentSequence = ContentSequence([_container(codes.DCM.ImageLibraryGroup, group)])
    return library


def _descriptors(number: int, image: ImageOutcome) -> ContentSequence:
    """TID 1602 and 1603, as far as the source knows."""
    header = image.header
    items = ContentSequence()
    coded = {
        codes.DCM.Modality: anatomy.modality(header),
        codes.DCM.ImageLaterality: anatomy.laterality(header),
        codes.DCM.ImageView: anatomy.image_view(header),
    }
    items.extend(_code(name, value, _ACQUIRED) for name, value in coded.items() if value is not None)
    if header.study.date:
        items.append(DateContentItem(codes.DCM.StudyDate, header.study.date, _ACQUIRED))
    if header.rows:
        items.append(_pixels(codes.DCM.PixelDataRows, header.rows))
    if header.columns:
        items.append(_pixels(codes.DCM.PixelDataColumns, header.columns))
    if image.not_analysed is not None:
        items.append(TextContentItem(codes.DCM.Comment, _not_analysed(number, image), _ACQUIRED))
    return items


def _pixels(name: SrCode, count: int) -> NumContentItem:
    item = NumContentItem(name, count, _PIXELS, relationship_type=_ACQUIRED)
    item.MeasuredValueSequence[0].NumericValue = str(count)  # highdicom writes 1760 as "1760.0"
    return item


def _measurements(content: ReportContent) -> ContainerContentItem:
    groups = ContentSequence()
    for number, image in enumerate(content.images, start=1):
        for reading in image.readings:
            groups.extend(_group(content, number, image, reading))
    # Stands even when it is empty: OHIF dereferences it unchecked.
    return _container(codes.DCM.ImagingMeasurements, groups)


def _group(content: ReportContent, number: int, image: ImageOutcome, reading: FindingOutcome) -> ContentSequence:
    """One Measurement Group: TID 1410 where a region can be shown, else TID 1501.

    Only "Present" ever carries a region, so that a group cannot be taken for a fracture when it is not one.
    """
    header = image.header
    code = CodedConcept(reading.code.value, reading.code.scheme, reading.code.meaning)
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(
            uid=hd.UID(_tracking_uid(content, header, reading)), identifier=_label(number, header, reading)
        ),
        "finding_type": code,
        "algorithm_id": _algorithm(image.algorithm or content.algorithm, reading),
        "finding_sites": _sites(header),
        "measurements": [
            Measurement(codes.DCM.CertaintyOfFinding, value=round(100 * reading.probability, 1), unit=_PERCENT)
        ],
        "qualitative_evaluations": [QualitativeEvaluation(code, CodedConcept.from_code(_PRESENCE[reading.decision]))],
    }
    if reading.decision == "fracture" and reading.region is not None:
        return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=_region(header, reading), **common)
    source = SourceImageForMeasurementGroup(header.sop_class_uid, header.sop_instance_uid)
    return MeasurementsAndQualitativeEvaluations(source_images=[source], **common)


def _tracking_uid(content: ReportContent, header: SourceHeader, reading: FindingOutcome) -> str:
    # The same finding on the same image keeps its tracking UID in the reports that follow (PS3.16, TID 4108).
    return digest_uid("tracking", [content.installation_uid, header.sop_instance_uid, dataclasses.asdict(reading.code)])


def _label(number: int, header: SourceHeader, reading: FindingOutcome) -> str:
    if reading.code == FRACTURE:
        return f"{image_name(number, header)}: {_LABELS[reading.decision]}"
    return f"{image_name(number, header)}: {reading.code.meaning}: {_PRESENCE[reading.decision].meaning.lower()}"


def _algorithm(algorithm: Algorithm, reading: FindingOutcome) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        manufacturer=algorithm.manufacturer,
        parameters=[
            f"absent_below={reading.absent_below:g}",
            f"present_from={reading.present_from:g}",
            f"bundle_sha256={algorithm.bundle_sha256}",
        ],
    )


def _sites(header: SourceHeader) -> list[FindingSite] | None:
    region = anatomy.anatomic_region(header)
    return None if region is None else [FindingSite(region, laterality=anatomy.laterality(header))]


def _region(header: SourceHeader, reading: FindingOutcome) -> ImageRegion:
    """A box, although the record has the outline of the heatmap's cells: its steps are the grid's, not the bone's.

    A viewer draws a box as "look here" and steps as if somebody had traced an edge; and a box never crosses itself.
    """
    assert reading.region is not None  # noqa: S101 (the caller asked)
    xmin, ymin, xmax, ymax = reading.region
    outline = np.array([(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)], dtype=np.float64)
    return ImageRegion(
        graphic_type="POLYLINE",
        graphic_data=outline,
        source_image=SourceImageForRegion(header.sop_class_uid, header.sop_instance_uid),
    )


def _evaluations(content: ReportContent) -> ContainerContentItem:
    """TID 1500, rows 12 to 14: the study as a whole, in codes and in plain text, and what was not analysed."""
    items = ContentSequence([TextContentItem(codes.DCM.Impression, impression(content).text, _CONTAINS)])
    for code in _findings(content):
        presence = _PRESENCE[study_decision(content, code)]
        items.append(_code(SrCode(code.value, code.scheme, code.meaning), presence, _CONTAINS))
    for number, image in enumerate(content.images, start=1):
        if image.not_analysed is not None:
            comment = TextContentItem(codes.DCM.Comment, _not_analysed(number, image), _CONTAINS)
            comment.ContentSequence = ContentSequence([_reference(image.header, RelationshipTypeValues.INFERRED_FROM)])
            items.append(comment)
    return _container(_QUALITATIVE_EVALUATIONS, items)


def _findings(content: ReportContent) -> list[Code]:
    found = {reading.code: None for image in content.images for reading in image.readings}
    return list(found) or [FRACTURE]


def _not_analysed(number: int, image: ImageOutcome) -> str:
    assert image.not_analysed is not None  # noqa: S101 (the caller asked)
    reason = image.not_analysed
    return f"{image_name(number, image.header)}: not analysed ({reason.value}). {reason.sentence}"


def _reference(header: SourceHeader, relationship: RelationshipTypeValues) -> ImageContentItem | CompositeContentItem:
    # Presentation states, reports and private objects are named by a COMPOSITE item.
    kind = ImageContentItem if is_image(header.sop_class_uid) else CompositeContentItem
    return kind(
        name=CodedConcept.from_code(_SOURCE),
        referenced_sop_class_uid=header.sop_class_uid,
        referenced_sop_instance_uid=header.sop_instance_uid,
        relationship_type=relationship,
    )


def _container(name: SrCode, items: ContentSequence | None = None) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type=_CONTAINS)
    if items:
        container.ContentSequence = items
    return container


def _code(name: SrCode, value: SrCode, relationship: RelationshipTypeValues) -> CodeContentItem:
    return CodeContentItem(name=name, value=value, relationship_type=relationship)
