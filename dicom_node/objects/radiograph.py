"""Build a radiograph as a modality would: Digital X-Ray, Computed Radiography or Secondary Capture.

The pixels come as they are stored; every attribute that says how to present them can be set, also to what the standard
forbids for a kind of image, so that readers can be tested with it. With the defaults the object is correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import DSfloat

from dicom_node.headers import SourceHeader
from dicom_node.objects import anatomy
from dicom_node.objects.encode import NATIVE, Effort, encode, pixel_bytes
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

Kind = Literal["DX", "DX_PROCESSING", "CR", "SC"]
Photometric = Literal["MONOCHROME2", "MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"]
Shape = Literal["IDENTITY", "INVERSE", "auto"]
VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

NOMINAL_SPACING = 1.0
"""Imager Pixel Spacing in mm. The attribute is Type 1, a picture has no scale: 1 mm is too odd to be measured with."""

NOMINAL_ORIENTATION = ("L", "F")
"""Patient Orientation: rows run to the patient's left and columns to the feet, as a frontal view is hung."""


@dataclass(frozen=True, eq=False)
class LookupTable:
    """An item of a Modality or VOI LUT Sequence (PS3.3, C.11.1 and C.11.2), or a palette's colour.

    Attributes
    ----------
    entries
        The outputs, up to 65,536 of them, each within `bits`.
    first
        The stored value (for a VOI LUT: the output of the modality LUT) that the first entry stands for.
    bits
        8 to 16; in Computed Radiography and Secondary Capture only 8 or 16 (PS3.3, C.11.1.1.1).
    """

    entries: NDArray[np.uint16]
    first: int = 0
    bits: int = 16


@dataclass(frozen=True, eq=False)
class Pixels:
    """How values are stored and presented (PS3.3, C.7.6.3, C.11.1, C.11.2, C.9.2).

    Attributes
    ----------
    bits_stored, bits_allocated
        1 to 16, within 8 or 16; allocated is the smaller that fits when None.
    presentation_lut_shape
        "auto" is what the standard wants: IDENTITY with MONOCHROME2 and INVERSE with MONOCHROME1 in Digital X-Ray, and
        none elsewhere.
    rescale
        (slope, intercept). Digital X-Ray always states (1, 0), the only one that it may have (PS3.3, C.8.11.3), unless
        another is given or there is a modality LUT.
    windows
        (centre, width) of each, in values after the modality LUT.
    padding
        Pixel Padding Value, or (value, range limit), as stored values.
    overlay
        Bits of the overlay plane 6000, of the image's shape.
    palette
        Red, green and blue, for PALETTE COLOR.
    frames
        So many copies of the picture; above 1 against the standard, for readers that must refuse it.
    """

    bits_stored: int = 8
    bits_allocated: int | None = None
    signed: bool = False
    photometric: Photometric = "MONOCHROME2"
    presentation_lut_shape: Shape | None = "auto"
    rescale: tuple[float, float] | None = None
    modality_lut: LookupTable | None = None
    voi_lut: LookupTable | None = None
    windows: tuple[tuple[float, float], ...] = ()
    voi_function: VoiFunction | None = None
    padding: int | tuple[int, int] | None = None
    overlay: NDArray[np.bool_] | None = None
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    frames: int = 1

    @property
    def allocated(self) -> int:
        """Bits Allocated."""
        return self.bits_allocated or (8 if self.bits_stored <= 8 else 16)

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest value that can be stored."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class RectangularShutter:
    """Columns of the left and right edge, rows of the upper and lower one, counted from 1 (PS3.3, C.7.6.11)."""

    left: int
    right: int
    upper: int
    lower: int


@dataclass(frozen=True)
class CircularShutter:
    """Row and column of the centre, counted from 1, and the radius in pixels (PS3.3, C.7.6.11)."""

    centre: tuple[int, int]
    radius: int


@dataclass(frozen=True)
class PolygonalShutter:
    """(row, column) of each corner, counted from 1 (PS3.3, C.7.6.11)."""

    vertices: tuple[tuple[int, int], ...]


Shutter = RectangularShutter | CircularShutter | PolygonalShutter


def new_uid() -> str:
    """Draw a UID at random (PS3.5, B.2)."""
    return f"2.25.{uuid4().int}"


@dataclass(frozen=True)
class Identity:
    """Whose image it is, and which one of them. UIDs are drawn at random when not given."""

    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""  # YYYYMMDD
    sex: str = ""  # M, F or O
    age: str = ""  # such as 034Y
    study_uid: str = field(default_factory=new_uid)
    series_uid: str = field(default_factory=new_uid)
    sop_instance_uid: str = field(default_factory=new_uid)
    study_id: str = ""
    accession_number: str = ""
    study_description: str = ""
    series_description: str = ""
    series_number: int = 1
    instance_number: int = 1


@dataclass(frozen=True)
class Origin:
    """Where the pixels come from, and what happened to them on the way.

    Attributes
    ----------
    derivation
        Derivation Description; without one the image is an original.
    burned_in_annotation
        "YES", "NO", or "" where Digital X-Ray does not need it (there: "NO").
    loss
        Ratio and method (PS3.3, C.7.6.1.1.5) of a compression before this one.
    """

    derivation: str = ""
    burned_in_annotation: Literal["YES", "NO", ""] = ""
    loss: tuple[float, str] | None = None


def build_radiograph(
    stored: NDArray[np.integer],
    *,
    kind: Kind = "DX",
    pixels: Pixels | None = None,
    identity: Identity | None = None,
    origin: Origin | None = None,
    shutter: Shutter | Sequence[Shutter] = (),
    body_part: str = "",
    laterality: str = "",
    view_position: str = "",
    patient_orientation: Sequence[str] = NOMINAL_ORIENTATION,
    modality: str = "",
    manufacturer: str = "",
    made_at: datetime | None = None,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    effort: Effort | None = None,
) -> FileDataset:
    """Build the object (PS3.3, A.26, A.2 and A.8), without any group of Osteon's own results.

    Parameters
    ----------
    stored
        Stored values, (rows, columns), or (rows, columns, 3) for RGB and both YBR (given in full for YBR_FULL_422).
    pixels
        How they are stored; 8-bit MONOCHROME2 without a window by default.
    body_part
        A Body Part Examined (PS3.16, Annex L), such as "WRIST".
    laterality
        "R", "L", "B", "U" or ""; Image Laterality is Type 1 in Digital X-Ray, where "U" stands for unknown.
    modality
        By default DX, CR, or OT for Secondary Capture.
    made_at
        Gives study, content and acquisition their date and time; empty without it.
    transfer_syntax, effort
        See `dicom_node.objects.encode.encode`.

    Raises
    ------
    ValueError
        If a value does not fit in Bits Stored or a table in its descriptor, or if shape, kind or laterality are none
        that exist.
    EncodeError
        If the transfer syntax cannot hold the pixels.
    """
    pixels, identity, origin = pixels or Pixels(), identity or Identity(), origin or Origin()
    if kind not in _SOP_CLASSES:
        raise ValueError("kind is none of DX, DX_PROCESSING, CR, SC")
    if laterality not in ("", "R", "L", "B", "U"):
        raise ValueError("laterality is none of R, L, B, U")
    _check(stored, pixels)
    dataset = _instance(UID(_SOP_CLASSES[kind]), UID(identity.sop_instance_uid))
    _identify(dataset, identity)
    _date(dataset, made_at)
    dataset.Modality = modality or {"CR": "CR", "SC": "OT"}.get(kind, "DX")
    dataset.Manufacturer = manufacturer
    _place(dataset, kind, body_part, laterality, view_position)
    dataset.PatientOrientation = list(patient_orientation)
    _describe(dataset, kind, pixels, origin)
    for one in [shutter] if isinstance(shutter, Shutter) else shutter:
        _shut(dataset, one)
    _store(dataset, stored, pixels)
    _present(dataset, kind, pixels)
    if pixels.overlay is not None:
        _overlay(dataset, pixels.overlay)
    if transfer_syntax not in NATIVE:
        encode(dataset, transfer_syntax, effort)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return dataset


_SOP_CLASSES = {
    "DX": DigitalXRayImageStorageForPresentation,
    "DX_PROCESSING": DigitalXRayImageStorageForProcessing,
    "CR": ComputedRadiographyImageStorage,
    "SC": SecondaryCaptureImageStorage,
}


def _check(stored: NDArray[np.integer], pixels: Pixels) -> None:
    colour = pixels.photometric in ("RGB", "YBR_FULL", "YBR_FULL_422")
    if stored.ndim != (3 if colour else 2) or (colour and stored.shape[2] != 3) or stored.size == 0:
        raise ValueError("the shape does not fit the photometric interpretation")
    if not 1 <= pixels.bits_stored <= pixels.allocated or pixels.allocated not in (8, 16):
        raise ValueError("bits stored must fit in 8 or 16 bits allocated")
    low, high = pixels.range
    if int(stored.min()) < low or int(stored.max()) > high:
        raise ValueError(f"a value does not fit in {pixels.bits_stored} bits")
    tables = [pixels.modality_lut, pixels.voi_lut, *(pixels.palette or ())]
    if any(t is not None and not (-32768 <= t.first <= 65535 and 1 <= t.entries.size <= 65536) for t in tables):
        raise ValueError("a table has 1 to 65,536 entries, and its first value 16 bits")


# --- whose, when, what ------------------------------------------------------------------------------------------------


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


def _identify(dataset: Dataset, identity: Identity) -> None:
    dataset.PatientName = identity.patient_name
    dataset.PatientID = identity.patient_id
    dataset.PatientBirthDate = identity.birth_date
    dataset.PatientSex = identity.sex
    if identity.age:
        dataset.PatientAge = identity.age
    dataset.StudyInstanceUID = identity.study_uid
    dataset.StudyID = identity.study_id
    dataset.AccessionNumber = identity.accession_number
    dataset.ReferringPhysicianName = ""
    if identity.study_description:
        dataset.StudyDescription = identity.study_description
    dataset.SeriesInstanceUID = identity.series_uid
    dataset.SeriesNumber = identity.series_number
    if identity.series_description:
        dataset.SeriesDescription = identity.series_description
    dataset.InstanceNumber = identity.instance_number


def _date(dataset: Dataset, made_at: datetime | None) -> None:
    day, time = (made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")) if made_at else ("", "")
    dataset.StudyDate, dataset.StudyTime = day, time
    dataset.ContentDate, dataset.ContentTime = day, time
    if made_at:
        dataset.AcquisitionDate, dataset.AcquisitionTime = day, time


def _place(dataset: Dataset, kind: Kind, body_part: str, laterality: str, view_position: str) -> None:
    """DX Anatomy Imaged and DX Positioning (PS3.3, C.8.11.2, C.8.11.5); CR Series (C.8.1.1); General Series."""
    body_part, view_position = body_part.strip().upper(), view_position.strip().upper()
    if body_part or kind == "CR":
        dataset.BodyPartExamined = body_part
    if view_position or kind == "CR":
        dataset.ViewPosition = view_position
    if kind in ("CR", "SC"):
        # Laterality knows only the two sides (PS3.3, C.7.3.1); what is neither stands at the image.
        if laterality in ("B", "U"):
            dataset.ImageLaterality = laterality
        else:
            dataset.Laterality = laterality
        return
    header = SourceHeader("", "", "", "", body_part_examined=body_part, view_position=view_position)
    region, view = anatomy.anatomic_region(header), anatomy.image_view(header)
    dataset.ImageLaterality = laterality or "U"
    dataset.AnatomicRegionSequence = [] if region is None else [_coded(region)]
    dataset.PositionerType = ""
    if view is not None:
        item = _coded(view)
        item.ViewModifierCodeSequence = []
        dataset.ViewCodeSequence = [item]


def _describe(dataset: Dataset, kind: Kind, pixels: Pixels, origin: Origin) -> None:
    """General Image (C.7.6.1), DX Image and DX Detector (C.8.11.3, C.8.11.4), SC Equipment (C.8.6.1)."""
    dataset.ImageType = ["DERIVED" if origin.derivation else "ORIGINAL", "PRIMARY"]
    if origin.derivation:
        dataset.DerivationDescription = origin.derivation
    if origin.burned_in_annotation:
        dataset.BurnedInAnnotation = origin.burned_in_annotation
    if origin.loss is not None:
        ratio, method = origin.loss
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = _decimal(ratio)
        dataset.LossyImageCompressionMethod = method
    if kind == "SC":
        dataset.ConversionType = "WSD"
    if kind in ("CR", "SC"):
        return
    dataset.PresentationIntentType = "FOR PRESENTATION" if kind == "DX" else "FOR PROCESSING"
    dataset.ImageType = [*dataset.ImageType, ""]
    dataset.AcquisitionContextSequence = []
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = [NOMINAL_SPACING, NOMINAL_SPACING]
    dataset.BurnedInAnnotation = origin.burned_in_annotation or "NO"
    dataset.LossyImageCompression = "00" if origin.loss is None else "01"
    dataset.PixelIntensityRelationship = "LOG"
    # -1: bone, which lets the least X-rays through, has the highest values.
    dataset.PixelIntensityRelationshipSign = 1 if pixels.photometric == "MONOCHROME1" else -1


# --- pixels -----------------------------------------------------------------------------------------------------------


def _store(dataset: Dataset, stored: NDArray[np.integer], pixels: Pixels) -> None:
    """Image Pixel (C.7.6.3), and what of General Equipment describes pixels (C.7.5.1.1.2)."""
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = pixels.photometric
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        pixels.allocated,
        pixels.bits_stored,
        pixels.bits_stored - 1,
    )
    dataset.PixelRepresentation = int(pixels.signed)
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    if pixels.frames != 1:
        dataset.NumberOfFrames = pixels.frames
    data = pixel_bytes(
        np.broadcast_to(stored, (pixels.frames, *stored.shape)),
        bits_allocated=pixels.allocated,
        subsampled=pixels.photometric == "YBR_FULL_422",
    )
    dataset.add_new("PixelData", "OB" if pixels.allocated == 8 else "OW", data + b"\0" * (len(data) % 2))
    if pixels.padding is not None:
        value, limit = pixels.padding if isinstance(pixels.padding, tuple) else (pixels.padding, None)
        dataset.add_new("PixelPaddingValue", _vr(pixels), value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", _vr(pixels), limit)
    if pixels.palette is not None:
        for colour, table in zip(("Red", "Green", "Blue"), pixels.palette, strict=True):
            dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", _vr(pixels), _descriptor(table))
            dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", _entries(table))


def _present(dataset: Dataset, kind: Kind, pixels: Pixels) -> None:
    """Modality LUT (C.11.1), VOI LUT (C.11.2) and the Presentation LUT Shape (C.11.6)."""
    digital = kind in ("DX", "DX_PROCESSING")
    rescale = pixels.rescale or ((1, 0) if digital and pixels.modality_lut is None else None)
    if rescale is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = map(_decimal, rescale)
        dataset.RescaleType = "US"
    if pixels.modality_lut is not None:
        item = _table(pixels.modality_lut, _vr(pixels))
        item.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = [item]
    if pixels.windows:
        dataset.WindowCenter, dataset.WindowWidth = (
            [_decimal(value) for value in values] for values in zip(*pixels.windows, strict=True)
        )
        if len(pixels.windows) > 1:
            dataset.WindowCenterWidthExplanation = [f"WINDOW{n}" for n in range(1, 1 + len(pixels.windows))]
    if pixels.voi_function is not None:
        dataset.VOILUTFunction = pixels.voi_function
    if pixels.voi_lut is not None:
        # After a modality LUT or a rescale to unsigned units the first input is unsigned, too (C.11.2.1.1).
        signed = pixels.voi_lut.first < 0 or (pixels.signed and rescale is None and pixels.modality_lut is None)
        dataset.VOILUTSequence = [_table(pixels.voi_lut, "SS" if signed else "US")]
    shape: str | None = pixels.presentation_lut_shape
    if shape == "auto":
        shape = ("INVERSE" if pixels.photometric == "MONOCHROME1" else "IDENTITY") if digital else None
    if shape is not None:
        dataset.PresentationLUTShape = shape


def _decimal(value: float) -> DSfloat:
    """As many digits as a Decimal String may have, which is 16 characters (PS3.5, 6.2)."""
    return DSfloat(value, auto_format=True)


def _table(table: LookupTable, vr: Literal["US", "SS"]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, _descriptor(table))
    item.add_new("LUTData", "OW", _entries(table))
    return item


def _descriptor(table: LookupTable) -> list[int]:
    # 65,536 entries do not fit in 16 bits and are written as 0 (PS3.3, C.11.1.1.1).
    return [table.entries.size & 0xFFFF, table.first, table.bits]


def _entries(table: LookupTable) -> bytes:
    return table.entries.astype("<u2").tobytes()


def _vr(pixels: Pixels) -> Literal["US", "SS"]:
    return "SS" if pixels.signed else "US"


def _overlay(dataset: Dataset, bits: NDArray[np.bool_]) -> None:
    """Overlay Plane 6000 (C.9.2): a bit for each pixel, the first in the lowest bit."""
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    for element, vr, value in (
        (0x0010, "US", bits.shape[0]),
        (0x0011, "US", bits.shape[1]),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x3000, "OW", packed + b"\0" * (len(packed) % 2)),
    ):
        dataset.add_new((0x6000, element), vr, value)


def _shut(dataset: Dataset, shutter: Shutter) -> None:
    """Display Shutter (C.7.6.11), several shapes together if need be."""
    shapes = dataset.get("ShutterShape") or []
    shapes = [shapes] if isinstance(shapes, str) else list(shapes)
    if isinstance(shutter, RectangularShutter):
        shape = "RECTANGULAR"
        dataset.ShutterLeftVerticalEdge, dataset.ShutterRightVerticalEdge = shutter.left, shutter.right
        dataset.ShutterUpperHorizontalEdge, dataset.ShutterLowerHorizontalEdge = shutter.upper, shutter.lower
    elif isinstance(shutter, CircularShutter):
        shape = "CIRCULAR"
        dataset.CenterOfCircularShutter, dataset.RadiusOfCircularShutter = list(shutter.centre), shutter.radius
    else:
        shape = "POLYGONAL"
        dataset.VerticesOfThePolygonalShutter = [number for vertex in shutter.vertices for number in vertex]
    dataset.ShutterShape = [*shapes, shape]
    dataset.ShutterPresentationValue = 0


def _coded(code: SrCode) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
