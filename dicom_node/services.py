"""What the node speaks: SOP classes, transfer syntaxes, and the status of each answer (PS3.4, PS3.7 Annex C)."""

from __future__ import annotations

from enum import IntEnum

from pydicom import uid
from pydicom.uid import UID

from models.settings import Settings

TRANSFER_SYNTAXES: tuple[UID, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)
"""Every one is accepted and stored; what cannot be decoded later is not analysed."""

ANALYSED_SOP_CLASSES: tuple[UID, ...] = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
)
FOR_PROCESSING_SOP_CLASS = uid.DigitalXRayImageStorageForProcessing
SECONDARY_CAPTURE_SOP_CLASS = uid.SecondaryCaptureImageStorage


class Status(IntEnum):
    """C-STORE statuses this node answers with."""

    SUCCESS = 0x0000
    DUPLICATE_INSTANCE = 0x0111
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORISED = 0x0124
    UNRECOGNISED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


def accepted_sop_classes(settings: Settings) -> list[UID]:
    """Return the storage SOP classes that are negotiated under these settings."""
    classes = [*ANALYSED_SOP_CLASSES, FOR_PROCESSING_SOP_CLASS]
    if settings.listener.accept_secondary_capture:
        classes.append(SECONDARY_CAPTURE_SOP_CLASS)
    return classes + [UID(extra) for extra in settings.listener.also_accept if extra not in classes]


def is_image(sop_class_uid: str) -> bool:
    """Return whether instances of this SOP class are images (by the standard's name of the class)."""
    return "Image Storage" in UID(sop_class_uid).name
