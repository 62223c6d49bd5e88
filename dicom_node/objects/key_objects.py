"""Key Object Selection documents (TID 2010): the images to look at first, and the objects that are out of force.

- A flag: "Of Interest" (113000, DCM), naming the images on which a fracture was found. CID 7010 has no title for a
  finding, and this is the one that viewers show as an unspecified mark of importance.
- A rejection note, after IHE's Imaging Object Change Management: "Rejected for Patient Safety Reasons" (113037, DCM),
  naming what a later report has superseded, so that an archive stops showing it.

Pure: content in, bytes out, and equal content gives equal bytes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_node.headers import SourceHeader, is_uid
from dicom_node.objects import items
from dicom_node.objects.content import DISCLAIMER, Algorithm, Device, Predecessor
from dicom_node.objects.observer import device_observer, language
from dicom_node.objects.origin import as_file, coded, contribute, date, digest_uid, local_time, start
from dicom_node.services import is_image

BUILDER_VERSION = 1
"""Raise it with every change of what is rendered: the same content then goes out under a new UID."""

SOP_CLASS_UID = str(KeyObjectSelectionDocumentStorage)

Use = Literal["of_interest", "rejected"]


@dataclass(frozen=True, slots=True)
class KeyObject:
    """An object of the study that is named, by its UIDs."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str

    @classmethod
    def of(cls, header: SourceHeader) -> KeyObject:
        """The instance that has this header."""
        return cls(header.sop_class_uid, header.sop_instance_uid, header.series_instance_uid)


@dataclass(frozen=True, slots=True)
class KeyObjectContent:
    """Everything a key object selection renders. The objects are put into a fixed order.

    Parameters
    ----------
    installation_uid
        UID of this installation, the device observer (PS3.16, TID 1004).
    created_at
        Aware, UTC. It is printed, but does not take part in the UIDs.
    header
        Of any image of the study: it gives patient and study.
    algorithm
        What found the fractures; it stands in the description of a flag.
    objects
        "of_interest": the images with a fracture. "rejected": the superseded reports, heatmaps, presentation states and
        key object selections. At least one, all of the study of `header`.
    predecessor
        What this one takes the place of. It is not rendered, but takes part in the UID: what says again what was said
        before that goes out under a UID of its own, since the earlier one may have been rejected.

    Raises
    ------
    ValueError
        If there is no object, or one twice; if the time is not UTC; if a UID is not one.
    """

    installation_uid: str
    device: Device
    algorithm: Algorithm
    created_at: datetime
    header: SourceHeader
    use: Use
    objects: tuple[KeyObject, ...]
    series_number: int = 9903
    series_description: str = "Osteon key objects"
    predecessor: Predecessor | None = None

    def __post_init__(self) -> None:
        named = [uid for item in self.objects for uid in dataclasses.astuple(item)]
        if not all(map(is_uid, [self.installation_uid, *named])):
            raise ValueError("a UID is not one")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError("created_at is not in UTC")
        if not self.objects:
            raise ValueError("a selection names at least one object")
        if len({item.sop_instance_uid for item in self.objects}) != len(self.objects):
            raise ValueError("an object stands in the selection twice")
        if self.use not in _TITLES:
            raise ValueError("use is none of the two")
        object.__setattr__(self, "objects", tuple(sorted(self.objects, key=dataclasses.astuple)))


def build_key_objects(content: KeyObjectContent) -> bytes:
    """Build the document as a complete DICOM file (PS3.10), explicit VR little endian, in UTF-8."""
    header = content.header
    made = local_time(header, content.created_at)
    document = start(
        header,
        content.device,
        KeyObjectSelectionDocumentStorage,
        modality="KO",
        uid=render_key_objects_uid(content),
        series_uid=render_key_objects_series_uid(content),
    )
    document.SeriesNumber = content.series_number
    document.SeriesDescription = content.series_description
    document.ReferencedPerformedProcedureStepSequence = []
    document.InstanceNumber = 1
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(content)]
    document.ValueType = "CONTAINER"
    document.ConceptNameCodeSequence = [coded(_TITLES[content.use])]
    document.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = "2010"
    document.ContentTemplateSequence = [template]
    date(document, header, made)
    contribute(document, content.device, made)
    # The Content Sequence has the highest tag of all attributes.
    return as_file(document) + items.content_sequence(_tree(content))


def render_key_objects_uid(content: KeyObjectContent) -> str:
    """The document's SOP Instance UID: a digest of everything rendered but the time of making."""
    return digest_uid("key objects", _rendered(content))


def render_key_objects_series_uid(content: KeyObjectContent) -> str:
    """The document's Series Instance UID: each has a series of its own."""
    return digest_uid("key objects series", _rendered(content))


def _rendered(content: KeyObjectContent) -> dict[str, Any]:
    header = content.header
    return {
        "builder": BUILDER_VERSION,
        "use": content.use,
        "installation_uid": content.installation_uid,
        "device": dataclasses.asdict(content.device),
        "algorithm": dataclasses.asdict(content.algorithm),
        "series": [content.series_number, content.series_description],
        "study_instance_uid": header.study_instance_uid,
        "patient": dataclasses.asdict(header.patient),
        "study": dataclasses.asdict(header.study),
        "objects": [dataclasses.astuple(item) for item in content.objects],
        "predecessor": content.predecessor and dataclasses.asdict(content.predecessor),
    }


_TITLES: dict[Use, SrCode] = {
    "of_interest": codes.DCM.OfInterest,
    "rejected": codes.DCM.RejectedForPatientSafetyReasons,
}
_SOURCE = SrCode("260753009", "SCT", "Source")


def _evidence(content: KeyObjectContent) -> Dataset:
    by_series: dict[str, list[Dataset]] = defaultdict(list)
    for item in content.objects:
        reference = Dataset()
        reference.ReferencedSOPClassUID = item.sop_class_uid
        reference.ReferencedSOPInstanceUID = item.sop_instance_uid
        by_series[item.series_instance_uid].append(reference)
    study = Dataset()
    study.StudyInstanceUID = content.header.study_instance_uid
    study.ReferencedSeriesSequence = []
    for uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(series)
    return study


def _tree(content: KeyObjectContent) -> Iterator[bytes]:
    """TID 2010 "Key Object Selection", below its root."""
    yield language()
    yield from device_observer(content.installation_uid, content.device)
    yield items.text(codes.DCM.KeyObjectDescription, _description(content), items.CONTAINS)
    for item in content.objects:
        kind = "IMAGE" if is_image(item.sop_class_uid) else "COMPOSITE"
        yield items.reference(_SOURCE, kind, item.sop_class_uid, item.sop_instance_uid, items.CONTAINS)


def _description(content: KeyObjectContent) -> str:
    if content.use == "rejected":
        return "Superseded by a later AI result of the same device, and no longer valid."
    algorithm, count = content.algorithm, len(content.objects)
    images = "1 image" if count == 1 else f"{count} images"
    return f"Fracture found on {images} by {algorithm.name} {algorithm.version}. {DISCLAIMER}."
