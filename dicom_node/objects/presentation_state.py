"""Grayscale Softcopy Presentation State: the region of a fracture, drawn on the radiograph itself by any viewer.

One for each image with a region. A viewer that applies a state takes how the image is shown from it alone (PS3.4, N.2),
so everything that the image says of it is repeated: modality LUT, VOI LUT or window, inversion, shutter, overlays. The
image then looks as it does without the state.

Graphics are in PIXEL units, in which 0.0\\0.0 is the top left corner of the top left pixel and Columns\\Rows the bottom
right corner of the image (PS3.3, C.10.5): the same as in a report's SCOORD and in `FindingOutcome.region`. Only the
Displayed Area counts pixels, from 1\\1 (C.10.4).

Pure: content in, bytes out, and equal content gives equal bytes. Not by highdicom's class, which wants the source's
data set again and does not repeat shutters, overlays and laterality.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicom_node.headers import SourceHeader, is_uid, quiet
from dicom_node.objects import anatomy
from dicom_node.objects.content import DISCLAIMER, Algorithm, Device, FindingOutcome, ImageOutcome, Predecessor, Region
from dicom_node.objects.origin import as_file, contribute, date, digest_uid, local_time, refer, show, start
from dicom_node.objects.wording import certainty, decision, is_present

BUILDER_VERSION = 1
"""Raise it with every change of what is rendered: the same content then goes out under a new UID."""

SOP_CLASS_UID = str(GrayscaleSoftcopyPresentationStateStorage)

Shape = Literal["IDENTITY", "INVERSE"]


class PresentationError(ValueError):
    """No presentation state can repeat how the image is shown; the message says why, without any value of the image."""


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup table (PS3.3, C.11.1.1 and C.11.2.1.1), each of its entries as 16 bits, the lower 8 first.

    `first` is the input that the first entry stands for.
    """

    entries: bytes
    first: int
    bits: int
    kind: str = ""  # Modality LUT Type
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """A window (PS3.3, C.11.2.1.2), in values after the modality LUT. Centre and width as the source writes them."""

    centre: str
    width: str
    function: str = ""  # "" is LINEAR
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Shutter:
    """A display shutter (PS3.3, C.7.6.11), its values as the source writes them."""

    shapes: tuple[str, ...]
    values: tuple[tuple[str, tuple[int, ...]], ...]  # keyword, values


@dataclass(frozen=True, slots=True)
class Grayscale:
    """How a source shows itself: what `read_grayscale` took from its header.

    `aspect` is the pixel's height to its width, in whole numbers. No spacing in mm is kept: nobody is to measure by it.
    `overlays` are the groups of its overlay planes, 0x6000 to 0x601E.
    """

    rows: int
    columns: int
    bits: int = 16  # stored
    signed: bool = False
    rescale: tuple[str, str, str] | None = None  # slope, intercept, type
    modality_lut: Table | None = None
    window: Window | None = None
    voi_lut: Table | None = None
    shape: Shape = "IDENTITY"
    aspect: tuple[int, int] = (1, 1)
    shutter: Shutter | None = None
    overlays: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PresentationStateContent:
    """Everything a presentation state renders.

    Parameters
    ----------
    installation_uid
        UID of this installation; it takes part in the UIDs.
    algorithm
        The bundle that read the image, where the image names none of its own.
    created_at
        Aware, UTC. It is printed, but does not take part in the UIDs.
    image
        An image with a region of a finding that is present (`has_regions`).
    source_digest
        Hexadecimal, stands for `grayscale` in the UIDs: the digest of the source's file, say. So the UIDs can be told
        without the file.
    grayscale
        None only where nothing but the UIDs is asked for.
    number
        The image's place in the report, from 1: the Instance Number.
    predecessor
        What this one takes the place of. It is not rendered, but takes part in the UID: what says again what was said
        before that goes out under a UID of its own, since the earlier one may have been rejected.

    Raises
    ------
    ValueError
        If the image has no region; if the time is not UTC; if a UID is not one; if there is no digest.
    """

    installation_uid: str
    device: Device
    algorithm: Algorithm
    created_at: datetime
    image: ImageOutcome
    source_digest: str
    grayscale: Grayscale | None
    number: int = 1
    series_number: int = 9902
    series_description: str = "Osteon fracture regions"
    predecessor: Predecessor | None = None

    def __post_init__(self) -> None:
        if not is_uid(self.installation_uid):
            raise ValueError("installation_uid is not a UID")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError("created_at is not in UTC")
        if not has_regions(self.image):
            raise ValueError("the image has no region to be shown")
        if not self.source_digest:
            raise ValueError("source_digest is missing")


def has_regions(image: ImageOutcome) -> bool:
    """Whether there is something to be drawn on the image: the region of a finding that is present."""
    return any(True for _ in _regions(image))


def build_presentation_state(content: PresentationStateContent) -> bytes:
    """Build the state as a complete DICOM file (PS3.10), explicit VR little endian, in UTF-8.

    Raises
    ------
    ValueError
        If there is no `grayscale`.
    PresentationError
        If a region reaches beyond the image.
    """
    grayscale = content.grayscale
    if grayscale is None:
        raise ValueError("a state cannot be built without grayscale")
    header = content.image.header
    made = local_time(header, content.created_at)
    document = start(
        header,
        content.device,
        GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        uid=render_presentation_state_uid(content),
        series_uid=render_presentation_state_series_uid(content),
    )
    document.SeriesNumber = content.series_number
    document.SeriesDescription = content.series_description
    show(document, header)
    _name(document, content)
    document.PresentationCreationDate = made.strftime("%Y%m%d")
    document.PresentationCreationTime = made.strftime("%H%M%S")
    document.ReferencedSeriesSequence = [_reference(header)]
    _display(document, grayscale)
    _grey(document, grayscale)
    _shut(document, grayscale.shutter)
    _draw(document, content, grayscale)
    date(document, header, made, of=("InstanceCreation",))
    contribute(document, content.device, made)
    return as_file(document)


def render_presentation_state_uid(content: PresentationStateContent) -> str:
    """The state's SOP Instance UID: a digest of everything rendered but the time of making."""
    return digest_uid("presentation state", _rendered(content))


def render_presentation_state_series_uid(content: PresentationStateContent) -> str:
    """The Series Instance UID: a digest of what its instances have in common, so that a study has one for each side."""
    return digest_uid("presentation state series", _common(content))


def _common(content: PresentationStateContent) -> dict[str, Any]:
    header = content.image.header
    return {
        "builder": BUILDER_VERSION,
        "installation_uid": content.installation_uid,
        "device": dataclasses.asdict(content.device),
        "algorithm": dataclasses.asdict(content.image.algorithm or content.algorithm),
        "series": [content.series_number, content.series_description],
        "patient": dataclasses.asdict(header.patient),
        "study": dataclasses.asdict(header.study),
        "study_instance_uid": header.study_instance_uid,
        "shown": [header.body_part_examined, anatomy.side(header)],
    }


def _rendered(content: PresentationStateContent) -> dict[str, Any]:
    header = content.image.header
    return {
        **_common(content),
        "image": [header.sop_class_uid, header.sop_instance_uid, header.series_instance_uid],
        "readings": [dataclasses.asdict(reading) for reading in content.image.readings],
        "source": content.source_digest,
        "number": content.number,
        "predecessor": content.predecessor and dataclasses.asdict(content.predecessor),
    }


# --- reading the source -----------------------------------------------------------------------------------------------


def read_grayscale(dataset: Dataset) -> Grayscale:
    """Read how an image is shown, as `dicom_node.image.grey` does; the pixels are not needed.

    A window that no image can have counts as none, and so does a spacing that is none.

    Raises
    ------
    PresentationError
        If it is no single grey image, or a lookup table, rescale or shutter is malformed.
    """
    with quiet():
        try:
            return _read(dataset)
        except PresentationError:
            raise
        except Exception:  # pydicom has no common class for what malformed values can bring about
            raise PresentationError("an attribute that says how the image is shown is malformed") from None


def _read(dataset: Dataset) -> Grayscale:
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise PresentationError("the image is not grey")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise PresentationError("the image has several frames")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
        raise PresentationError("the image has no size")
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 16:
        raise PresentationError("Bits Stored is beyond 16")
    modality_lut = _first_table(dataset, "ModalityLUTSequence")
    voi_lut = _first_table(dataset, "VOILUTSequence")
    inverse = photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    return Grayscale(
        rows=rows,
        columns=columns,
        bits=bits,
        signed=int(dataset.get("PixelRepresentation") or 0) == 1,
        rescale=None if modality_lut else _rescale(dataset),
        modality_lut=modality_lut,
        window=None if voi_lut else _window(dataset),
        voi_lut=voi_lut,
        shape="INVERSE" if inverse else "IDENTITY",
        aspect=_aspect(dataset),
        shutter=_shutter(dataset),
        overlays=_overlays(dataset),
    )


def _first_table(dataset: Dataset, keyword: str) -> Table | None:
    if not dataset.get(keyword):
        return None
    item = dataset[keyword].value[0]
    entries, first, bits = (int(part) for part in item.LUTDescriptor)
    entries = entries or 1 << 16
    if not (8 <= bits <= 16 and 0 < entries <= 1 << 16 and -(1 << 15) <= first < 1 << 16):
        raise PresentationError("a lookup table's descriptor is malformed")
    data = item.LUTData
    read: npt.NDArray[np.integer]
    if isinstance(data, bytes):  # OW; with 8 bits, some pack two entries to a word
        read = np.frombuffer(data, dtype=np.uint8 if bits == 8 and len(data) < 2 * entries else np.dtype("<u2"))
    else:  # US, some of which pydicom takes for SS: the descriptor's middle value decides its VR (PS3.3, C.11.1.1)
        read = np.asarray(data, dtype=np.int64)
    found = (read.reshape(-1)[:entries].astype(np.int64) & 0xFFFF).astype("<u2")
    if found.size < entries:
        raise PresentationError("a lookup table is shorter than it says")
    if int(found.max()) >= 1 << bits:
        raise PresentationError("a lookup table has more bits than it says")
    kind = _text(item, "ModalityLUTType")
    return Table(found.tobytes(), first, bits, kind=kind, explanation=_text(item, "LUTExplanation"))


def _rescale(dataset: Dataset) -> tuple[str, str, str] | None:
    slope, intercept = _decimal(dataset, "RescaleSlope"), _decimal(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    if slope is not None and float(slope) == 0:
        raise PresentationError("Rescale Slope is 0")
    return slope or "1", intercept or "0", _text(dataset, "RescaleType") or "US"


def _window(dataset: Dataset) -> Window | None:
    centre, width = _decimal(dataset, "WindowCenter"), _decimal(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "")
    if centre is None or width is None:
        return None
    if function not in ("", "LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise PresentationError("VOI LUT Function is none of the standard's")
    possible = float(width) >= 1 if function in ("", "LINEAR") else float(width) > 0
    return Window(centre, width, function, _text(dataset, "WindowCenterWidthExplanation")) if possible else None


def _decimal(dataset: Dataset, keyword: str) -> str | None:
    """The first value of a Decimal String, as it is written."""
    value = _values(dataset, keyword)[:1]
    if not value:
        return None
    text = str(value[0]).strip()
    if not math.isfinite(float(text)):
        raise PresentationError(f"{keyword} is not a number")
    return text if len(text) <= 16 else f"{float(text):.9g}"


def _aspect(dataset: Dataset) -> tuple[int, int]:
    """Height to width of a pixel; the attribute that viewers take first comes first."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        values = [_positive(value) for value in _values(dataset, keyword)]
        if len(values) == 2 and values[0] and values[1]:
            ratio = (values[0] / values[1]).limit_denominator(10_000)
            if 0 < ratio.numerator < 1 << 31:
                return ratio.numerator, ratio.denominator
    return (1, 1)


def _positive(value: object) -> Fraction | None:
    try:
        number = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        return None
    return number if number > 0 else None


_SHUTTERS = {
    "RECTANGULAR": {
        "ShutterLeftVerticalEdge": 1,
        "ShutterRightVerticalEdge": 1,
        "ShutterUpperHorizontalEdge": 1,
        "ShutterLowerHorizontalEdge": 1,
    },
    "CIRCULAR": {"CenterOfCircularShutter": 2, "RadiusOfCircularShutter": 1},
    "POLYGONAL": {"VerticesOfThePolygonalShutter": 0},
}
"""Attributes of each shape, and how many values they have (0: pairs, three at least)."""


def _shutter(dataset: Dataset) -> Shutter | None:
    shapes = tuple(str(shape) for shape in _values(dataset, "ShutterShape"))
    values: list[tuple[str, tuple[int, ...]]] = []
    for shape in shapes:
        if shape not in _SHUTTERS:
            raise PresentationError("a shutter's shape is none of the standard's")
        for keyword, count in _SHUTTERS[shape].items():
            found = tuple(int(str(value)) for value in _values(dataset, keyword))
            if any(abs(value) >= 1 << 31 for value in found):
                raise PresentationError(f"{keyword} is out of range")
            if len(found) != count if count else len(found) < 6 or len(found) % 2:
                raise PresentationError(f"{keyword} is malformed")
            values.append((keyword, found))
    if not shapes:
        return None
    shown = _values(dataset, "ShutterPresentationValue")
    values.append(("ShutterPresentationValue", (int(str(shown[0])) if shown else 0,)))
    return Shutter(shapes, tuple(values))


def _overlays(dataset: Dataset) -> tuple[int, ...]:
    groups = range(0x6000, 0x6020, 2)
    return tuple(group for group in groups if (group, 0x0010) in dataset and (group, 0x3000) in dataset)


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _text(dataset: Dataset, keyword: str) -> str:
    values = _values(dataset, keyword)
    return str(values[0]).strip()[:64] if values else ""


# --- writing the state ------------------------------------------------------------------------------------------------

_LAYER = "AI"
_SOURCE_LAYER = "SOURCE"


def _name(document: Dataset, content: PresentationStateContent) -> None:
    """Presentation State Identification (PS3.3, C.11.10)."""
    algorithm = content.image.algorithm or content.algorithm
    document.InstanceNumber = content.number
    document.ContentLabel = "AI_REGION"
    document.ContentDescription = DISCLAIMER
    # A person's name, to be shown as who made it: the algorithm, then its version.
    parts = [re.sub(r"[\\^=]", " ", part) for part in (algorithm.name, algorithm.version)]
    document.ContentCreatorName = "^".join(parts)[:64]


def _reference(header: SourceHeader) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = header.series_instance_uid
    series.ReferencedImageSequence = [refer(header)]
    return series


def _display(document: Dataset, grayscale: Grayscale) -> None:
    """The whole image, as large as fits (PS3.3, C.10.4); pixels are counted from 1."""
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [grayscale.columns, grayscale.rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    area.PresentationPixelAspectRatio = list(grayscale.aspect)
    document.DisplayedAreaSelectionSequence = [area]


def _grey(document: Dataset, grayscale: Grayscale) -> None:
    """Modality LUT, Softcopy VOI LUT and Presentation LUT (PS3.3, C.11.1, C.11.8, C.11.6)."""
    if grayscale.rescale is not None:
        document.RescaleSlope, document.RescaleIntercept, document.RescaleType = grayscale.rescale
    if grayscale.modality_lut is not None:
        item = _table(grayscale.modality_lut, signed=grayscale.signed)
        item.ModalityLUTType = grayscale.modality_lut.kind or "US"
        document.ModalityLUTSequence = [item]
    voi = Dataset()
    if grayscale.voi_lut is not None:
        voi.VOILUTSequence = [_table(grayscale.voi_lut, signed=_signed_after_modality(grayscale))]
    elif grayscale.window is not None:
        window = grayscale.window
        voi.WindowCenter, voi.WindowWidth = window.centre, window.width
        if window.explanation:
            voi.WindowCenterWidthExplanation = window.explanation
        if window.function:
            voi.VOILUTFunction = window.function
    if voi:
        document.SoftcopyVOILUTSequence = [voi]
    document.PresentationLUTShape = grayscale.shape


def _signed_after_modality(grayscale: Grayscale) -> bool:
    """Whether what enters the VOI LUT may be negative: that decides how its first input is written (C.11.2.1.1)."""
    if grayscale.modality_lut is not None:
        return False
    slope, intercept = (float(part) for part in (grayscale.rescale or ("1", "0", ""))[:2])
    half = 1 << grayscale.bits - 1
    ends = (-half, half - 1) if grayscale.signed else (0, 2 * half - 1)
    return min(end * slope for end in ends) + intercept < 0


def _table(table: Table, *, signed: bool) -> Dataset:
    first = table.first
    if signed and first >= 1 << 15:  # written without its sign: in Implicit VR nobody can tell
        first -= 1 << 16
    elif not signed and first < 0:
        first += 1 << 16
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(table.entries) // 2 & 0xFFFF, first, table.bits])
    if table.explanation:
        item.LUTExplanation = table.explanation
    item.add_new("LUTData", "OW", table.entries)
    return item


def _shut(document: Dataset, shutter: Shutter | None) -> None:
    if shutter is not None:
        document.ShutterShape = list(shutter.shapes)
        for keyword, values in shutter.values:
            setattr(document, keyword, list(values) if len(values) > 1 else values[0])


def _draw(document: Dataset, content: PresentationStateContent, grayscale: Grayscale) -> None:
    """Graphic Annotation and Graphic Layer (PS3.3, C.10.5 and C.10.7), and the source's own overlays."""
    found = list(_regions(content.image))
    for _, (_, _, xmax, ymax) in found:
        if xmax > grayscale.columns or ymax > grayscale.rows:
            raise PresentationError("a region reaches beyond the image")
    regions = [region for _, region in found]
    places: list[Region] = []
    texts = []
    for reading, region in found:
        lines = [f"AI: {_lower(decision(reading))}, {certainty(reading)}", DISCLAIMER]
        place = _place(region, (regions, places), lines, grayscale)
        places.append(place)
        texts.append(_text_object(lines, place))
    annotation = Dataset()
    annotation.GraphicLayer = _LAYER
    annotation.TextObjectSequence = texts
    annotation.GraphicObjectSequence = [_outline(region) for _, region in found]
    document.GraphicAnnotationSequence = [annotation]
    layers = [(_LAYER, "AI result")]
    for group in grayscale.overlays:
        document.add_new((group, 0x1001), "CS", _SOURCE_LAYER)
    if grayscale.overlays:
        layers.insert(0, (_SOURCE_LAYER, "Overlays of the image"))
    document.GraphicLayerSequence = [_layer(*layer, order) for order, layer in enumerate(layers, start=1)]


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _regions(image: ImageOutcome) -> Iterator[tuple[FindingOutcome, Region]]:
    for reading in image.readings:
        if is_present(reading) and reading.region is not None:
            yield reading, reading.region


def _layer(name: str, description: str, order: int) -> Dataset:
    layer = Dataset()
    layer.GraphicLayer = name
    layer.GraphicLayerOrder = order
    layer.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
    layer.GraphicLayerDescription = description
    return layer


def _outline(region: Region) -> Dataset:
    xmin, ymin, xmax, ymax = region
    points = [(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)]
    graphic = Dataset()
    graphic.GraphicAnnotationUnits = "PIXEL"
    graphic.GraphicDimensions = 2
    graphic.NumberOfGraphicPoints = len(points)
    graphic.GraphicData = [edge for point in points for edge in point]
    graphic.GraphicType = "POLYLINE"
    graphic.GraphicFilled = "N"
    return graphic


def _text_object(lines: list[str], place: Region) -> Dataset:
    xmin, ymin, xmax, ymax = place
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "PIXEL"
    text.UnformattedTextValue = "\r\n".join(lines)
    text.BoundingBoxTopLeftHandCorner = [xmin, ymin]
    text.BoundingBoxBottomRightHandCorner = [xmax, ymax]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    return text


def _place(region: Region, taken: tuple[list[Region], ...], lines: list[str], grayscale: Grayscale) -> Region:
    """A place for a text: above the region, else below it, else at a corner of the image; where it covers least.

    `taken` are regions and places of other texts, in the order in which they must not be covered.
    """
    columns, rows = float(grayscale.columns), float(grayscale.rows)
    line = max(columns, rows) / 45
    width = min(columns, 0.55 * line * max(map(len, lines)))
    height = min(rows, 1.3 * line * len(lines))
    left = min(max(region[0], 0.0), columns - width)
    gap = line / 2
    corners = [
        (left, region[1] - gap - height),
        (left, region[3] + gap),
        (0.0, 0.0),
        (columns - width, 0.0),
        (0.0, rows - height),
        (columns - width, rows - height),
    ]
    places = [(x, y, x + width, y + height) for x, y in corners if 0 <= y <= rows - height]
    return min(places, key=lambda place: [sum(_shared(place, other) for other in others) for others in taken])


def _shared(one: Region, other: Region) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
