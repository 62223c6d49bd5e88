"""What no model of this node reads, whatever it was made for: decided from the header and the site's settings alone.

What depends on the model in force (modality, body part, age) is decided by its bundle, in `worker.bundle`.
"""

from __future__ import annotations

from dicom_node.headers import Sides, SourceHeader
from dicom_node.services import (
    ANALYSED_SOP_CLASSES,
    FOR_PROCESSING_SOP_CLASS,
    SECONDARY_CAPTURE_SOP_CLASS,
    is_image,
)
from models.reasons import Reason
from models.settings import Settings


def reason_not_to_read(header: SourceHeader, settings: Settings) -> Reason | None:
    """Return why an instance is stored and never analysed, or None where its header speaks against nothing.

    Only what is stated counts; the first reason of these is given:

    1. The SOP class is none that is analysed (Secondary Capture only where the site takes it).
    2. For Processing, by the SOP class or by the Presentation Intent Type, which CR and Secondary Capture may state too
       (PS3.3, C.8.11.1): such pixels lack the contrast that a model learned from. A site may allow it.
    3. Something says that the patient is an animal (`SourceHeader.animal`).
    4. One level of the header says right and another left: Image Laterality, Laterality, the Anatomic Region's
       modifier, the texts of the series, or those of the study. A finding on the wrong side is worse than none, and
       which of them is wrong cannot be known from here. "Both" and "unpaired" contradict nothing. The image of the
       other side, taken for comparison in a study of one side, is refused too, unless its study says "comparison": from
       here it looks the same as a wrong marker.
    """
    reason = _by_sop_class(header.sop_class_uid, settings)
    if reason is not None:
        return reason
    if header.presentation_intent == "FOR PROCESSING" and not settings.analysis.analyse_for_processing:
        return Reason.FOR_PROCESSING
    if header.animal:
        return Reason.VETERINARY
    return Reason.LATERALITY_CONFLICT if _contradict(header.sides) else None


def _by_sop_class(sop_class_uid: str, settings: Settings) -> Reason | None:
    if sop_class_uid in ANALYSED_SOP_CLASSES:
        return None
    if sop_class_uid == FOR_PROCESSING_SOP_CLASS:
        return None if settings.analysis.analyse_for_processing else Reason.FOR_PROCESSING
    if sop_class_uid == SECONDARY_CAPTURE_SOP_CLASS and settings.listener.accept_secondary_capture:
        return None
    return Reason.OTHER_SOP_CLASS if is_image(sop_class_uid) else Reason.NOT_AN_IMAGE


def _contradict(sides: Sides) -> bool:
    return {"R", "L"} <= {sides.image, sides.series, sides.region, sides.series_text, sides.study_text}
