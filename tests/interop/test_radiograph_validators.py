"""Built radiographs as others judge them: dicom3tools reads the headers, DCMTK the pixels."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import HTJ2K as HTJ2KLossy
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.objects.encode import COMPRESSED, LOSSY, Effort
from dicom_node.objects.radiograph import (
    CircularShutter,
    Pixels,
    PolygonalShutter,
    RectangularShutter,
    build_radiograph,
)
from dicom_node.wrap import wrap_picture
from tests.peers import require_peer
from tests.radiographs import Border, radiograph

PICTURE = np.add.outer(np.arange(48) * 3, np.arange(64)).astype(np.uint8)
IOD = {"DX": "DXImageForPresentation", "DX_PROCESSING": "DXImageForProcessing", "CR": "CRImage", "SC": "SCImage"}

KINDS = ("DX", "DX_PROCESSING", "CR", "SC")
SHUTTERS = {
    "rectangular": RectangularShutter(3, 60, 4, 40),
    "circular": CircularShutter((20, 30), 15),
    "polygonal": PolygonalShutter(((1, 1), (1, 60), (40, 30))),
}
# Of every kind of radiograph.
ANY: dict[str, dict[str, Any]] = {
    "plain": {},
    "bare": {"body_part": "", "laterality": "", "view_position": "", "made_at": None, "manufacturer": ""},
    "MONOCHROME1": {"monochrome1": True},
    "8 bits": {"bits": 8},
    "8 bits in 16": {"bits": 8, "allocated": 16},
    "10 bits": {"bits": 10},
    "14 bits": {"bits": 14},
    "16 bits": {"bits": 16},
    "padding": {"padding": 0, "border": Border(0.1)},
    "padding to a limit": {"padding": (0, 7)},
    "overlay": {"overlay": True},
    "turned": {"rotate": 90, "flip": True},
    "side unpaired": {"laterality": "U"},
    **{f"{name} shutter": {"shutter": shutter} for name, shutter in SHUTTERS.items()},
    "shutters": {"shutter": tuple(SHUTTERS.values())},
    "a patient": {"birth_date": "19800102", "sex": "F", "age": "046Y", "patient_name": "山田^太郎"},
}
# Not For Processing: a window and a VOI LUT belong to what is for presentation (PS3.3, C.8.11.3).
FOR_PRESENTATION: dict[str, dict[str, Any]] = {
    "two windows": {"window": ["full", (1000, 500.5)]},
    "SIGMOID": {"voi_function": "SIGMOID"},
    "LINEAR_EXACT": {"voi_function": "LINEAR_EXACT"},
    "VOI LUT": {"voi_lut": True, "window": None},
    "VOI LUT of 16 bits and a window": {"voi_lut": True, "bits": 16},
}
# Not Digital X-Ray, whose pixels are unsigned and whose rescale is the identity (PS3.3, C.8.11.3).
NOT_DIGITAL: dict[str, dict[str, Any]] = {
    "no window": {"window": None},
    "rescale": {"rescale": (2, -100.5)},
    "modality LUT": {"modality_lut": True},
    "signed": {"signed": True, "padding": (-2048, -2000)},
    "signed with both LUTs": {"signed": True, "modality_lut": True, "voi_lut": True},
    "signed with a VOI LUT": {"signed": True, "voi_lut": True},
}
VARIANTS = [
    *(pytest.param(kind, details, id=f"{kind}: {name}") for kind in KINDS for name, details in ANY.items()),
    *(
        pytest.param(kind, details, id=f"{kind}: {name}")
        for kind in ("DX", "CR", "SC")
        for name, details in FOR_PRESENTATION.items()
    ),
    *(
        pytest.param(kind, details, id=f"{kind}: {name}")
        for kind in ("CR", "SC")
        for name, details in NOT_DIGITAL.items()
    ),
]

# dciodvfy counts three bytes a pixel and knows YBR_FULL_422 in JPEG only; PS3.3, C.7.6.3.1.2, has it for native pixels
# too, two of which share their chroma, and the SC Image Module (C.8.6.2) restricts nothing.
_FALSE_OF_NATIVE_422 = [
    "Error - PixelData has incorrect value length - expected 9216 dec - got 6144 dec",
    "Error - Unrecognized enumerated value <YBR_FULL_422> for value 1 of attribute <Photometric Interpretation>",
]


@pytest.mark.parametrize(("kind", "details"), VARIANTS)
def test_dicom3tools_finds_no_error_in_any_presentation(kind: Any, details: dict[str, Any], tmp_path: Path) -> None:
    assert errors(radiograph(PICTURE, kind=kind, **details), IOD[kind], tmp_path) == []


@pytest.mark.parametrize("kind", ["DX", "CR", "SC"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, *COMPRESSED], ids=str)
def test_dicom3tools_finds_no_error_in_any_transfer_syntax(kind: Any, syntax: UID, tmp_path: Path) -> None:
    assert errors(radiograph(PICTURE, kind=kind, transfer_syntax=syntax), IOD[kind], tmp_path) == []


@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL", "PALETTE"])
def test_dicom3tools_finds_no_error_in_colours(colour: Any, tmp_path: Path) -> None:
    assert errors(radiograph(PICTURE, kind="SC", colour=colour), "SCImage", tmp_path) == []


def test_dicom3tools_finds_only_its_own_errors_in_native_ybr_full_422(tmp_path: Path) -> None:
    assert errors(radiograph(PICTURE, kind="SC", colour="YBR_FULL_422"), "SCImage", tmp_path) == _FALSE_OF_NATIVE_422


@pytest.mark.parametrize("syntax", COMPRESSED, ids=str)
@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_dicom3tools_finds_no_error_in_compressed_colours(syntax: UID, colour: Any, tmp_path: Path) -> None:
    assert errors(radiograph(PICTURE, kind="SC", colour=colour, transfer_syntax=syntax), "SCImage", tmp_path) == []


@pytest.mark.parametrize("wrapped_as", ["DX", "CR", "SC"])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGBaseline8Bit], ids=str)
def test_dicom3tools_finds_no_error_in_a_picture_wrapped_otherwise(
    wrapped_as: Any, syntax: UID, tmp_path: Path
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.jpg")
    dataset = wrap_picture(
        tmp_path / "picture.jpg",
        patient_id="P1",
        patient_name="Doe^Jane",
        wrapped_as=wrapped_as,
        transfer_syntax=syntax,
    )
    assert errors(dataset, IOD[wrapped_as], tmp_path) == []


def test_dicom3tools_notices_what_the_standard_forbids(tmp_path: Path) -> None:
    """The checks above would be worth nothing with a validator that finds nothing."""
    assert errors(radiograph(PICTURE, omit=("PresentationLUTShape",)), IOD["DX"], tmp_path)
    assert errors(radiograph(PICTURE, signed=True), IOD["DX"], tmp_path)
    assert errors(radiograph(PICTURE, monochrome1=True, lut_shape="IDENTITY"), IOD["DX"], tmp_path)


DCMTK = {
    RLELossless: ("dcmdrle",),
    JPEGBaseline8Bit: ("dcmdjpeg", "+cn"),  # +cn: the colours as they are stored
    JPEGExtended12Bit: ("dcmdjpeg", "+cn"),
    JPEGLossless: ("dcmdjpeg", "+cn"),
    JPEGLosslessSV1: ("dcmdjpeg", "+cn"),
    JPEGLSLossless: ("dcmdjpls",),
    JPEGLSNearLossless: ("dcmdjpls",),
}


@pytest.mark.parametrize("syntax", [syntax for syntax in DCMTK if syntax not in LOSSY], ids=str)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_dcmtk_decodes_every_value_as_it_was_stored(syntax: UID, bits: int, signed: bool, tmp_path: Path) -> None:
    pixels = Pixels(bits, signed=signed)
    low, high = pixels.range
    stored = np.linspace(low, high, 48 * 63).reshape(48, 63).astype(np.int64)
    stored[20:30] = np.random.default_rng(bits).integers(low, high + 1, (10, 63))
    for predictor in range(1, 8) if syntax == JPEGLossless else [1]:
        effort = Effort(predictor=predictor)
        dataset = build_radiograph(stored, kind="CR", pixels=pixels, transfer_syntax=syntax, effort=effort)
        assert np.array_equal(pixel_array(decoded(dataset, tmp_path)), stored), predictor


@pytest.mark.parametrize("syntax", [syntax for syntax in DCMTK if syntax not in LOSSY], ids=str)
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_dcmtk_decodes_colours_as_they_were_stored(syntax: UID, photometric: Any, tmp_path: Path) -> None:
    shape = (15, 13) if photometric == "PALETTE COLOR" else (15, 13, 3)
    stored = np.random.default_rng(1).integers(0, 256, shape)
    stored[..., -1] //= 16  # unlike the others, so that each needs a code of its own
    dataset = build_radiograph(stored, kind="SC", pixels=Pixels(photometric=photometric), transfer_syntax=syntax)
    back = decoded(dataset, tmp_path)
    assert back.PhotometricInterpretation == photometric
    assert np.array_equal(pixel_array(back, raw=True), stored)


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [
        (JPEGBaseline8Bit, 8),
        (JPEGExtended12Bit, 8),
        (JPEGExtended12Bit, 12),
        (JPEGLSNearLossless, 8),
        (JPEGLSNearLossless, 12),
        (JPEGLSNearLossless, 16),
    ],
)
def test_dcmtk_decodes_what_lost_something_as_nearly_what_was_stored(syntax: UID, bits: int, tmp_path: Path) -> None:
    stored = np.linspace(0, (1 << bits) - 1, 48)[:, None].repeat(64, axis=1).astype(np.int64)
    dataset = build_radiograph(stored, pixels=Pixels(bits), transfer_syntax=syntax)
    assert np.abs(pixel_array(decoded(dataset, tmp_path)).astype(int) - stored).max() <= 6


def test_dcmtk_inflates_what_was_deflated(tmp_path: Path) -> None:
    dataset = radiograph(PICTURE, transfer_syntax=DeflatedExplicitVRLittleEndian)
    assert np.array_equal(pixel_array(converted(dataset, tmp_path, "dcmconv", "+te")), dataset.pixel_array)


def errors(dataset: FileDataset, iod: str, folder: Path) -> list[str]:
    command = require_peer("dciodvfy")
    syntax = dataset.file_meta.TransferSyntaxUID
    path = folder / "radiograph.dcm"
    if syntax == DeflatedExplicitVRLittleEndian:
        # It cannot inflate; DCMTK does it for it, and changes nothing else.
        converted(dataset, folder, "dcmconv", "+te")
        path = folder / "converted.dcm"
    elif syntax in (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2KLossy):
        # It is older than HTJ2K, and takes an encapsulated image for a broken one where it does not know the syntax.
        dataset.file_meta.TransferSyntaxUID = JPEG2000 if syntax in LOSSY else JPEG2000Lossless
    if syntax != DeflatedExplicitVRLittleEndian:
        dataset.save_as(path, enforce_file_format=True)
    done = subprocess.run([str(command), str(path)], capture_output=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    assert iod in lines  # it fell over nothing, and saw what the object is
    return [line for line in lines if line.startswith("Error")]


def decoded(dataset: FileDataset, folder: Path) -> FileDataset:
    return converted(dataset, folder, *DCMTK[dataset.file_meta.TransferSyntaxUID])


def converted(dataset: FileDataset, folder: Path, name: str, *options: str) -> FileDataset:
    source, target = folder / "source.dcm", folder / "converted.dcm"
    dataset.save_as(source, enforce_file_format=True)
    command = [str(require_peer(name)), *options, str(source), str(target)]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    return pydicom.dcmread(target)
