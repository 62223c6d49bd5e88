"""Wrap a PNG or JPEG picture of a radiograph into a DICOM object, so that it can be sent like one from a modality.

For demonstrations, tests and data sets that come as pictures. A picture knows neither its scale nor its patient: what
it does not know is left empty, or is plainly nominal.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
)

from dicom_node.headers import SourceHeader
from dicom_node.objects import anatomy
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

Presentation = Literal["FOR PRESENTATION", "FOR PROCESSING"]

NOMINAL_SPACING = 1.0
"""Imager Pixel Spacing in mm. The attribute is Type 1, a picture has no scale: 1 mm is too odd to be measured with."""

NOMINAL_ORIENTATION = ("L", "F")
"""Patient Orientation: rows run to the patient's left and columns to the feet, as a frontal view is hung."""

# Rows and Columns are 16-bit (PS3.3, C.7.6.3).
_LONGEST_SIDE = 65535


class PictureError(ValueError):
    """It is not a picture that can be wrapped; the message names neither file nor patient."""


def wrap_picture(
    picture: str | os.PathLike[str] | Image.Image,
    *,
    patient_id: str,
    patient_name: str,
    patient_birth_date: str = "",
    patient_sex: str = "",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_instance_uid: str | None = None,
    accession_number: str = "",
    study_description: str = "",
    body_part: str | None = None,
    laterality: str | None = None,
    view_position: str | None = None,
    instance_number: int = 1,
    made_at: datetime | None = None,
    presentation: Presentation = "FOR PRESENTATION",
) -> FileDataset:
    """Make a Digital X-Ray image (PS3.3, A.26) of 8-bit MONOCHROME2, explicit VR little endian, from a picture.

    Colour becomes grey, 16-bit grey its upper eight bits, what is transparent black; a camera's rotation is applied.

    Parameters
    ----------
    picture
        A PNG or JPEG file, or a picture that is already open.
    study_uid, series_uid, sop_instance_uid
        Drawn at random (`2.25.` + a UUID) when not given.
    body_part
        A Body Part Examined (PS3.16, Annex L), such as "WRIST".
    laterality
        "R", "L", "B" or "U"; Image Laterality is Type 1 here, so "U" (unpaired) stands for unknown.
    view_position
        Such as "AP".
    made_at
        Gives study, content and acquisition their date and time; empty without it.
    presentation
        The Presentation Intent Type, which also decides the SOP class.

    Raises
    ------
    PictureError
        If it is not a PNG or JPEG picture, is damaged, or is too large.
    OSError
        If the file cannot be opened.
    ValueError
        If `laterality` or `presentation` is not one of its values.
    """
    source = _open(picture)
    body_part, view_position = (body_part or "").strip().upper(), (view_position or "").strip().upper()
    if laterality not in (None, "R", "L", "B", "U"):
        raise ValueError("laterality is none of R, L, B, U")
    if presentation not in _SOP_CLASSES:
        raise ValueError("presentation is neither FOR PRESENTATION nor FOR PROCESSING")
    dataset = _instance(_SOP_CLASSES[presentation], UID(sop_instance_uid or _new_uid()))

    dataset.PatientName = patient_name
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = patient_birth_date
    dataset.PatientSex = patient_sex

    dataset.StudyInstanceUID = study_uid or _new_uid()
    dataset.StudyID = ""
    dataset.AccessionNumber = accession_number
    dataset.ReferringPhysicianName = ""
    if study_description:
        dataset.StudyDescription = study_description

    dataset.SeriesInstanceUID = series_uid or _new_uid()
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance_number
    dataset.Modality = "DX"
    dataset.PresentationIntentType = presentation
    dataset.Manufacturer = ""

    _date(dataset, made_at)
    _place(dataset, body_part, laterality or "U", view_position)
    _pixels(dataset, source)
    return dataset


_SOP_CLASSES = {
    "FOR PRESENTATION": DigitalXRayImageStorageForPresentation,
    "FOR PROCESSING": DigitalXRayImageStorageForProcessing,
}


@dataclass(frozen=True)
class _Source:
    grey: NDArray[np.uint8]
    lossy: bool
    ratio: float


def _open(picture: str | os.PathLike[str] | Image.Image) -> _Source:
    if isinstance(picture, Image.Image):
        return _read(picture, size=None)
    data = Path(picture).read_bytes()
    with warnings.catch_warnings():
        # A picture of more pixels than Pillow thinks sane is an attack or a mistake, not a radiograph.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                return _read(image, size=len(data))
        except PictureError:
            raise
        except UnidentifiedImageError:
            raise PictureError("the file is not a PNG or JPEG picture") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError("the picture is too large") from None
        except (OSError, ValueError, SyntaxError, EOFError):  # what Pillow raises for damaged files
            raise PictureError("the picture is damaged") from None


def _read(image: Image.Image, *, size: int | None) -> _Source:
    if max(image.size) > _LONGEST_SIDE or min(image.size) < 1:
        raise PictureError("the picture is too large")
    lossy = image.format == "JPEG"
    grey = _grey(ImageOps.exif_transpose(image))
    return _Source(grey, lossy, ratio=round(grey.nbytes / size, 2) if size else 1.0)


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        return (np.asarray(image).astype(np.uint32).clip(0, 65535) >> 8).astype(np.uint8)
    if image.mode == "F":
        raise PictureError("the picture has an unknown range of values")
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("L"), dtype=np.uint8)


def _instance(sop_class: UID, sop_instance: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    # No Contributing Equipment: with it Osteon would take the image for one of its own results and not read it.
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = sop_instance
    return dataset


def _date(dataset: Dataset, made_at: datetime | None) -> None:
    day, time = (made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")) if made_at else ("", "")
    dataset.StudyDate, dataset.StudyTime = day, time
    dataset.ContentDate, dataset.ContentTime = day, time
    if made_at:
        dataset.AcquisitionDate, dataset.AcquisitionTime = day, time


def _place(dataset: Dataset, body_part: str, laterality: str, view_position: str) -> None:
    """DX Anatomy Imaged and DX Positioning (PS3.3, C.8.11.2 and C.8.11.5)."""
    header = SourceHeader("", "", "", "", body_part_examined=body_part, view_position=view_position)
    region, view = anatomy.anatomic_region(header), anatomy.image_view(header)
    dataset.ImageLaterality = laterality
    dataset.AnatomicRegionSequence = [] if region is None else [_coded(region)]
    dataset.PatientOrientation = list(NOMINAL_ORIENTATION)
    dataset.PositionerType = ""
    if body_part:
        dataset.BodyPartExamined = body_part
    if view_position:
        dataset.ViewPosition = view_position
    if view is not None:
        item = _coded(view)
        item.ViewModifierCodeSequence = []
        dataset.ViewCodeSequence = [item]


def _pixels(dataset: Dataset, source: _Source) -> None:
    """DX Image and DX Detector (PS3.3, C.8.11.3 and C.8.11.4)."""
    dataset.ImageType = ["DERIVED", "PRIMARY", ""]
    dataset.DerivationDescription = "Wrapped from a picture; spacing and orientation are nominal"
    dataset.AcquisitionContextSequence = []
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = [NOMINAL_SPACING, NOMINAL_SPACING]
    dataset.BurnedInAnnotation = "YES"  # nobody looked: it may hold a name
    dataset.LossyImageCompression = "01" if source.lossy else "00"
    if source.lossy:
        dataset.LossyImageCompressionRatio = source.ratio
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = source.grey.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    dataset.PresentationLUTShape = "IDENTITY"
    if dataset.PresentationIntentType == "FOR PRESENTATION":
        dataset.WindowCenter, dataset.WindowWidth = 128, 256
    data = source.grey.tobytes()
    dataset.add_new("PixelData", "OB", data + b"\0" * (len(data) % 2))


def _coded(code: SrCode) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _new_uid() -> str:
    return f"2.25.{uuid4().int}"
