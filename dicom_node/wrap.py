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

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.objects.radiograph import (
    NOMINAL_ORIENTATION,
    Identity,
    Kind,
    Origin,
    Pixels,
    build_radiograph,
    new_uid,
)

Presentation = Literal["FOR PRESENTATION", "FOR PROCESSING"]
WrappedAs = Literal["DX", "CR", "SC"]

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
    wrapped_as: WrappedAs = "DX",
    transfer_syntax: UID = ExplicitVRLittleEndian,
) -> FileDataset:
    """Make a radiograph of 8-bit MONOCHROME2 from a picture: Digital X-Ray (PS3.3, A.26) unless told otherwise.

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
        "R", "L", "B" or "U"; Image Laterality is Type 1 in Digital X-Ray, so "U" (unpaired) stands for unknown.
    view_position
        Such as "AP".
    made_at
        Gives study, content and acquisition their date and time; empty without it.
    presentation
        The Presentation Intent Type of Digital X-Ray, which also decides the SOP class.
    wrapped_as
        Digital X-Ray, Computed Radiography or Secondary Capture.
    transfer_syntax
        How the pixels are encoded; what can hold 8 bits of grey. See `dicom_node.objects.encode`.

    Raises
    ------
    PictureError
        If it is not a PNG or JPEG picture, is damaged, or is too large.
    OSError
        If the file cannot be opened.
    ValueError
        If `laterality`, `presentation` or `wrapped_as` is not one of its values, or there is no encoder for
        `transfer_syntax`.
    """
    source = _open(picture)
    kind = _kind(wrapped_as, presentation)
    nominal = "spacing and orientation are nominal" if wrapped_as == "DX" else "orientation is unknown"
    return build_radiograph(
        source.grey,
        kind=kind,
        pixels=Pixels(windows=() if kind == "DX_PROCESSING" else ((128, 256),)),
        identity=Identity(
            patient_id=patient_id,
            patient_name=patient_name,
            birth_date=patient_birth_date,
            sex=patient_sex,
            study_uid=study_uid or new_uid(),
            series_uid=series_uid or new_uid(),
            sop_instance_uid=sop_instance_uid or new_uid(),
            accession_number=accession_number,
            study_description=study_description,
            instance_number=instance_number,
        ),
        origin=Origin(
            derivation=f"Wrapped from a picture; {nominal}",
            burned_in_annotation="YES",  # nobody looked: it may hold a name
            loss=(source.ratio, "ISO_10918_1") if source.lossy else None,
        ),
        body_part=body_part or "",
        laterality=laterality or "",
        view_position=view_position or "",
        # Only Digital X-Ray must state one.
        patient_orientation=NOMINAL_ORIENTATION if wrapped_as == "DX" else (),
        made_at=made_at,
        transfer_syntax=transfer_syntax,
    )


def _kind(wrapped_as: WrappedAs, presentation: Presentation) -> Kind:
    if wrapped_as not in ("DX", "CR", "SC"):
        raise ValueError("a picture is wrapped as none of DX, CR, SC")
    if presentation not in ("FOR PRESENTATION", "FOR PROCESSING"):
        raise ValueError("presentation is neither FOR PRESENTATION nor FOR PROCESSING")
    if presentation == "FOR PRESENTATION":
        return wrapped_as
    if wrapped_as != "DX":
        raise ValueError("only Digital X-Ray is FOR PROCESSING")
    return "DX_PROCESSING"


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
