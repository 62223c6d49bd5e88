"""The picture of a result: a Secondary Capture of each image, in colour, for sites and viewers that read nothing else.

- A fracture found: the radiograph, the model's score map laid over it, and the outline of each region.
- None found, or undetermined: the radiograph in grey alone. No colour and no outline, which could be taken for a
  finding.
- Not analysed, or no picture to be had: a plain dark card with the reason, so that silence is never "no fracture".

Each says in words what was decided, with what certainty, by which algorithm, and "AI result, not for primary
diagnosis", in bands above and below the radiograph, never on it. Neither name nor ID of the patient is drawn.

JPEG Baseline: with the bands, a picture of 1,024 pixels takes some 100 kB instead of 3 MB, in every row of the database
and on every line to a PACS; nobody measures or reads in it, since the radiograph itself stands beside it; and every
viewer decodes it. Quality is lowered until a picture is below `MOST_BYTES`, which only noise ever needs.

Modality is the source's, as the standard has it: what originally acquired the data (PS3.3, C.8.6.1). Burned In
Annotation says NO on a card only: what a radiograph has burned in itself, a name too, is in its picture.

Pure: content in, bytes out. The UIDs are digests of facts, so that they can be told without the pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from dicom_node.headers import SourceHeader, is_uid
from dicom_node.objects import anatomy
from dicom_node.objects.content import DISCLAIMER, FRACTURE, Algorithm, Device, ImageOutcome, Predecessor, overall
from dicom_node.objects.encode import Effort, encode
from dicom_node.objects.origin import as_file, coded, contribute, date, digest_uid, local_time, refer, show, start
from dicom_node.objects.wording import certainty, decision, is_present
from dicom_node.services import is_image

BUILDER_VERSION = 1
"""Raise it with every change of what is rendered: the same content then goes out under a new UID."""

SOP_CLASS_UID = str(SecondaryCaptureImageStorage)

MOST_BYTES = 350_000

Canvas = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """What a heatmap is drawn on.

    Attributes
    ----------
    pixels
        uint8, shape (rows, columns): the image as a viewer shows it, 0 black, at most some 1,024 pixels long.
    scores
        float32, the same shape, 0 to 1: the model's score map, laid over the picture; of several findings, the highest
        of those that are present. Drawn with a fracture only.
    source_rows, source_columns
        Size of the whole source image, in whose pixels the regions are.
    """

    pixels: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32] | None
    source_rows: int
    source_columns: int

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.uint8 or not self.pixels.size:
            raise ValueError("pixels are not grey bytes")
        if self.scores is not None and self.scores.shape != self.pixels.shape:
            raise ValueError("scores have not the shape of pixels")
        if self.source_rows < 1 or self.source_columns < 1:
            raise ValueError("the source has no size")


@dataclass(frozen=True, eq=False)
class HeatmapContent:
    """Everything a heatmap renders.

    Parameters
    ----------
    installation_uid
        UID of this installation; it takes part in the UIDs.
    algorithm
        The bundle that read the image, where the image names none of its own.
    created_at
        Aware, UTC. It is printed, but does not take part in the UIDs.
    label
        What the report calls the image, as "Image 2 (LL)".
    number
        The image's place in the report, from 1: the Instance Number.
    source_digest
        Hexadecimal, stands for `picture` in the UIDs: a digest of the source's pixels and the model's score maps. Empty
        for an image that was not analysed.
    picture
        None for a card: an image that was not analysed, or of which no picture can be had any more. None too where
        nothing but the UIDs is asked for.
    predecessor
        What this one takes the place of. It is not rendered, but takes part in the UID: what says again what was said
        before that goes out under a UID of its own, since the earlier one may have been rejected.

    Raises
    ------
    ValueError
        If an image that was not analysed has a picture; if the time is not UTC; if a UID is not one.
    """

    installation_uid: str
    device: Device
    algorithm: Algorithm
    created_at: datetime
    image: ImageOutcome
    label: str
    number: int = 1
    source_digest: str = ""
    picture: Picture | None = None
    series_number: int = 9901
    series_description: str = "Osteon fracture pictures"
    predecessor: Predecessor | None = None

    def __post_init__(self) -> None:
        if not is_uid(self.installation_uid):
            raise ValueError("installation_uid is not a UID")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError("created_at is not in UTC")
        if self.image.not_analysed is not None and (self.picture is not None or self.source_digest):
            raise ValueError("of an image that was not analysed there is a card only")
        if self.picture is not None and not self.source_digest:
            raise ValueError("source_digest of the picture is missing")


def build_heatmap(content: HeatmapContent) -> bytes:
    """Build the picture as a complete DICOM file (PS3.10), JPEG Baseline, in UTF-8.

    Without a `picture` it is a card, also of an image that was analysed: its pixels may be gone.
    """
    header = content.image.header
    made = local_time(header, content.created_at)
    document = start(
        header,
        content.device,
        SecondaryCaptureImageStorage,
        modality=_modality(header),
        uid=render_heatmap_uid(content),
        series_uid=render_heatmap_series_uid(content),
    )
    document.SeriesNumber = content.series_number
    document.SeriesDescription = content.series_description
    show(document, header)
    date(document, header, made, of=("InstanceCreation", "Content"))
    _describe(document, content)
    _compress(document, draw(content))
    contribute(document, content.device, made)
    return as_file(document)


def render_heatmap_uid(content: HeatmapContent) -> str:
    """The picture's SOP Instance UID: a digest of everything rendered but the time of making."""
    return digest_uid("heatmap", _rendered(content))


def render_heatmap_series_uid(content: HeatmapContent) -> str:
    """The Series Instance UID: a digest of what its instances have in common, so that a study has one for each side."""
    return digest_uid("heatmap series", _common(content))


def _common(content: HeatmapContent) -> dict[str, Any]:
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
        "shown": [_modality(header), header.body_part_examined, anatomy.side(header)],
    }


def _rendered(content: HeatmapContent) -> dict[str, Any]:
    header = content.image.header
    return {
        **_common(content),
        "image": [header.sop_class_uid, header.sop_instance_uid, header.series_instance_uid],
        "readings": [dataclasses.asdict(reading) for reading in content.image.readings],
        "not_analysed": content.image.not_analysed,
        "label": content.label,
        "number": content.number,
        "source": content.source_digest,
        "predecessor": content.predecessor and dataclasses.asdict(content.predecessor),
    }


# --- the header -------------------------------------------------------------------------------------------------------


def _modality(header: SourceHeader) -> str:
    code = anatomy.modality(header)
    return "OT" if code is None else str(code.value)


def _describe(document: Dataset, content: HeatmapContent) -> None:
    """SC Equipment, General Image and General Reference (PS3.3, C.8.6.1, C.7.6.1, C.12.4)."""
    header, device = content.image.header, content.device
    algorithm = content.image.algorithm or content.algorithm
    drawn_from_image = content.picture is not None
    document.ConversionType = "WSD" if drawn_from_image else "SYN"
    document.SecondaryCaptureDeviceManufacturer = device.manufacturer
    document.SecondaryCaptureDeviceManufacturerModelName = device.model
    document.SecondaryCaptureDeviceSoftwareVersions = device.software_version
    document.ImageType = ["DERIVED", "SECONDARY", "AI_RESULT"]
    document.InstanceNumber = content.number
    document.PatientOrientation = None  # of the source it is not kept, and a card has none
    document.ImageComments = f"{' '.join(_sentences(content))} {DISCLAIMER}."
    if not drawn_from_image:
        document.BurnedInAnnotation = "NO"
    maker = f" ({algorithm.manufacturer})" if algorithm.manufacturer else ""
    bundle = f"{algorithm.name} {algorithm.version}{maker}, bundle sha256 {algorithm.bundle_sha256}"
    document.DerivationDescription = f"AI result by {bundle}. {DISCLAIMER}."
    if drawn_from_image:
        steps = (codes.cid7203.SpatialResampling, codes.cid7203.LossyCompression)
        document.DerivationCodeSequence = [coded(step) for step in steps]
    source = refer(header)
    if is_image(header.sop_class_uid):
        source.SpatialLocationsPreserved = "NO"
        source.PurposeOfReferenceCodeSequence = [coded(codes.cid7202.SourceImageForImageProcessingOperation)]
        document.SourceImageSequence = [source]
    else:
        document.SourceInstanceSequence = [source]
    series = Dataset()
    series.SeriesInstanceUID = header.series_instance_uid
    series.ReferencedInstanceSequence = [refer(header)]
    document.ReferencedSeriesSequence = [series]


def _sentences(content: HeatmapContent) -> list[str]:
    image = content.image
    if image.not_analysed is not None:
        return [f"{content.label}: not analysed.", image.not_analysed.sentence]
    return [f"{content.label}: {decision(reading)}, certainty {certainty(reading)}." for reading in image.readings]


def _compress(document: Dataset, canvas: Canvas) -> None:
    document.SamplesPerPixel = 3
    document.PlanarConfiguration = 0
    document.Rows, document.Columns = canvas.shape[:2]
    document.BitsAllocated = document.BitsStored = 8
    document.HighBit = 7
    document.PixelRepresentation = 0
    plain = document.file_meta.TransferSyntaxUID
    for quality in (92, 85, 75, 60, 40, 20):
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            document.pop(keyword, None)
        document.file_meta.TransferSyntaxUID = plain
        document.PhotometricInterpretation = "RGB"
        document.PixelData = canvas.tobytes()
        encode(document, JPEGBaseline8Bit, Effort(quality=quality))
        if len(document.PixelData) <= MOST_BYTES:
            return


# --- the picture ------------------------------------------------------------------------------------------------------

_NARROWEST = 640
"""So wide is the canvas at least, for the words; a smaller picture is enlarged until its long side is as much."""

_GROUND, _WORDS, _QUIET, _MARK = (16, 16, 16), (240, 240, 240), (168, 168, 168), (255, 176, 0)
_FAINTEST, _STRONGEST = 0.2, 0.6
"""Below this score nothing is laid over the radiograph; at a score of 1 so much of the bone's place is the colour's."""


def draw(content: HeatmapContent) -> Canvas:
    """The whole picture, uint8 of shape (rows, columns, 3); its columns are even, as chroma is shared by two."""
    middle = _card(content) if content.picture is None else _radiograph(content, content.picture)
    width = max(middle.width, _NARROWEST)
    width += width % 2
    above, below = _header(content, width), _footer(content, width)
    canvas = Image.new("RGB", (width, above.height + middle.height + below.height), _GROUND)
    canvas.paste(above, (0, 0))
    canvas.paste(middle, ((width - middle.width) // 2, above.height))
    canvas.paste(below, (0, above.height + middle.height))
    return np.asarray(canvas)


def _radiograph(content: HeatmapContent, picture: Picture) -> Image.Image:
    rows, columns = picture.pixels.shape
    factor = max(1.0, _NARROWEST / max(rows, columns))
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    grey = np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.BICUBIC))
    shown = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if picture.scores is not None and _has_colours(content):
        scores = Image.fromarray(picture.scores.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        shown = _overlaid(shown, np.asarray(scores))
    image = Image.fromarray(shown)
    across, down = size[0] / picture.source_columns, size[1] / picture.source_rows
    for reading in content.image.readings:
        if is_present(reading) and reading.region is not None:
            xmin, ymin, xmax, ymax = reading.region
            _outline(image, (xmin * across, ymin * down, xmax * across, ymax * down))
    return image


def _overlaid(shown: Canvas, scores: npt.NDArray[np.float32]) -> Canvas:
    """Lay the scores over the picture: the higher, the lighter the colour and the less of the grey is left."""
    level = np.clip(np.nan_to_num(scores), 0.0, 1.0)
    rows, columns = (np.flatnonzero((level > _FAINTEST).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return shown
    where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    level, grey = level[where], shown[where]
    strength = (_STRONGEST * np.clip((level - _FAINTEST) / (1 - _FAINTEST), 0.0, 1.0))[:, :, np.newaxis]
    colours = colour_map()[np.rint(255 * level).astype(np.uint8)]
    overlaid = shown.copy()
    overlaid[where] = np.rint(grey + strength * (colours.astype(np.float32) - grey))
    return overlaid


@functools.cache
def colour_map() -> npt.NDArray[np.uint8]:
    """Colours of 256 scores, whose lightness (CIE L*) rises evenly: the order is seen without any legend.

    From a dark purple over red to a light amber, on an arc of equal chroma in CIE LCh, D65.
    """
    share = np.linspace(0.0, 1.0, 256)
    lightness, chroma = 30 + 52 * share, 72.0
    hue = np.radians(-30 + 105 * share)
    base = (lightness + 16) / 116
    lab = np.stack([base + chroma * np.cos(hue) / 500, base, base - chroma * np.sin(hue) / 200], axis=1)
    xyz = np.where(lab > 6 / 29, lab**3, 3 * (6 / 29) ** 2 * (lab - 4 / 29)) * np.array([0.95047, 1.0, 1.08883])
    linear = np.clip(xyz @ _XYZ_TO_RGB.T, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded).astype(np.uint8))


# IEC 61966-2-1
_XYZ_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])


def _outline(image: Image.Image, box: tuple[float, float, float, float]) -> None:
    """Around the box, a light line with a dark one on either side: seen on bone, on air and on the colours alike."""
    width = max(2, round(max(image.size) / 400))
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = (round(edge) for edge in box)
    rim = width // 2
    for colour, nearer, thick in (((0, 0, 0), 0, width + 2 * rim), ((255, 255, 255), rim, width)):
        out = nearer + thick
        pen.rectangle((left - out, top - out, right + out - 1, bottom + out - 1), outline=colour, width=thick)


# --- the words --------------------------------------------------------------------------------------------------------


def _header(content: HeatmapContent, width: int) -> Image.Image:
    """What was decided: one line for each finding. Mark and scale, which are in colour, stand with a fracture only."""
    large, small, pad = width // 24, width // 42, width // 40
    readings = content.image.readings
    band = Image.new("RGB", (width, 2 * pad + small + max(1, len(readings)) * (large + pad)), _GROUND)
    scale = _scale(band, (width - pad, pad + small), small) if _has_colours(content) else 0
    _write(band, content.label, (pad, pad + small), small, _QUIET, width - 3 * pad - scale)
    y = pad + small + pad + large
    if not readings:
        _write(band, "Not analysed", (pad, y), large, _WORDS, width - 2 * pad)
    for reading in readings:
        if is_present(reading):
            ImageDraw.Draw(band).rectangle((0, y - large, pad // 3, y + pad // 3), fill=_MARK)
        taken = _write(band, certainty(reading), (width - pad, y), large, _WORDS, width // 4, from_right=True)
        of = "certainty of a fracture" if reading.code == FRACTURE else "certainty"
        place = (width - pad - taken - pad // 2, y)
        taken += _write(band, of, place, small, _QUIET, width // 3, from_right=True)
        _write(band, decision(reading), (pad, y), large, _WORDS, width - 3 * pad - taken)
        y += large + pad
    return band


def _scale(band: Image.Image, place: tuple[int, int], size: int) -> int:
    """What the colours mean, ending at `place`; return its length."""
    bar, gap = 8 * size, size // 2
    right = place[0] - _write(band, "100 %", place, size, _QUIET, bar, from_right=True) - gap
    colours = Image.fromarray(np.repeat(colour_map()[np.newaxis], size, axis=0))
    band.paste(colours.resize((bar, size)), (right - bar, place[1] - size))
    left = right - bar - gap
    return place[0] - left + _write(band, "score 0 %", (left, place[1]), size, _QUIET, bar, from_right=True)


def _has_colours(content: HeatmapContent) -> bool:
    found = overall(reading.decision for reading in content.image.readings)
    return found == "fracture" and content.picture is not None and content.picture.scores is not None


def _footer(content: HeatmapContent, width: int) -> Image.Image:
    small, pad = width // 42, width // 40
    algorithm = content.image.algorithm or content.algorithm
    band = Image.new("RGB", (width, 2 * pad + small), _GROUND)
    taken = _write(band, DISCLAIMER, (pad, pad + small), small, _WORDS, width)
    text = f"{algorithm.name} {algorithm.version}"
    _write(band, text, (width - pad, pad + small), small, _QUIET, width - 3 * pad - taken, from_right=True)
    return band


def _card(content: HeatmapContent) -> Image.Image:
    """In place of the radiograph: why there is none."""
    reason = content.image.not_analysed
    text = "No picture of the image can be shown." if reason is None else reason.sentence
    width, pad = _NARROWEST, _NARROWEST // 40
    card = Image.new("RGB", (width, width // 4), _GROUND)
    _write(card, text, (pad, pad + width // 32), width // 32, _WORDS, width - 2 * pad)
    return card


def _write(
    image: Image.Image,
    text: str,
    place: tuple[int, int],
    size: int,
    colour: tuple[int, int, int],
    most: int,
    *,
    from_right: bool = False,
) -> int:
    """Write a line from its base line's left or right end, smaller if longer than `most`; return its length."""
    font = _font(size)
    length = math.ceil(font.getlength(text))
    while length > most and size > 8:
        size -= 1
        font = _font(size)
        length = math.ceil(font.getlength(text))
    x = place[0] - length if from_right else place[0]
    ImageDraw.Draw(image).text((x, place[1]), text, fill=colour, font=font, anchor="ls")
    return length


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow: the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow was built without FreeType")
    return font
