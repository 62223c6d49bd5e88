"""Radiographs that Osteon builds: decoders of others find what was stored, and viewers show what the picture shows."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames, parse_fragments
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import HTJ2K as HTJ2KLossy
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.headers import read_header
from dicom_node.objects.encode import COMPRESSED, LOSSY, NATIVE, Effort, EncodeError, encode
from dicom_node.objects.radiograph import (
    CircularShutter,
    Identity,
    LookupTable,
    Pixels,
    PolygonalShutter,
    RectangularShutter,
    build_radiograph,
)
from dicom_node.objects.recognise import is_own_object
from tests.radiographs import Border, radiograph

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
LOSSLESS = [syntax for syntax in COMPRESSED if syntax not in LOSSY]
# Decoders of others, none of which the encoders come from: GDCM, OpenJPEG as pylibjpeg has it, pydicom's own of RLE.
DECODERS = {
    RLELossless: ("pydicom", "pylibjpeg"),
    JPEGBaseline8Bit: ("gdcm",),
    JPEGLossless: ("gdcm",),
    JPEGLosslessSV1: ("gdcm",),
    JPEGLSLossless: ("gdcm",),
    JPEGLSNearLossless: ("gdcm",),
    JPEG2000Lossless: ("gdcm", "pylibjpeg"),
    JPEG2000: ("gdcm", "pylibjpeg"),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
    HTJ2KLossy: ("pylibjpeg",),
}


def keyword(uid: UID) -> str:
    return UID(uid).keyword


def reread(dataset: FileDataset) -> FileDataset:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)


@st.composite
def stored_values(draw: st.DrawFn) -> tuple[NDArray[np.int64], Pixels]:
    """Noise or a ramp in any storage, with the lowest and the highest value in it."""
    bits = draw(st.sampled_from([8, 10, 12, 14, 16]))
    pixels = Pixels(bits, draw(st.sampled_from([None, 16])), signed=draw(st.booleans()))
    shape = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    low, high = pixels.range
    if draw(st.booleans()):
        stored = np.random.default_rng(draw(st.integers(0, 99))).integers(low, high + 1, shape)
    else:
        stored = np.linspace(low, high, shape[0] * shape[1]).reshape(shape).astype(np.int64)
    stored[0, 0], stored[-1, -1] = low, high
    return stored, pixels


# --- encoders ---------------------------------------------------------------------------------------------------------


# Of noise the compressed image may happen to be as long as the uncompressed one, which pydicom finds suspicious.
@pytest.mark.filterwarnings("ignore:The number of bytes of compressed pixel data matches")
@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS], ids=keyword)
@settings(max_examples=25, deadline=None)
@given(made=stored_values(), predictor=st.integers(1, 7))
def test_without_loss_every_stored_value_comes_back(
    syntax: UID, made: tuple[NDArray[np.int64], Pixels], predictor: int
) -> None:
    stored, pixels = made
    effort = Effort(predictor=predictor)
    dataset = reread(build_radiograph(stored, kind="CR", pixels=pixels, transfer_syntax=syntax, effort=effort))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    for decoder in DECODERS.get(syntax, ("",)):
        assert np.array_equal(pixel_array(dataset, decoding_plugin=decoder), stored), decoder
    assert "LossyImageCompression" not in dataset


@pytest.mark.parametrize("syntax", [syntax for syntax in LOSSY if syntax in DECODERS], ids=keyword)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_with_loss_the_values_are_near_and_the_header_says_so(syntax: UID, bits: int, signed: bool) -> None:
    pixels = Pixels(bits, signed=signed)
    low, high = pixels.range
    # Black and white in it: what a decoder puts above the highest value must not come back as the lowest.
    stored = np.linspace(low, high, 48)[:, None].repeat(64, axis=1).astype(np.int64)
    try:
        dataset = reread(build_radiograph(stored, pixels=pixels, transfer_syntax=syntax))
    except EncodeError:
        assert syntax == JPEGBaseline8Bit or (syntax == JPEGLSNearLossless and signed)
        assert bits > 8 or signed
        return
    for decoder in DECODERS[syntax]:
        difference = np.abs(pixel_array(dataset, decoding_plugin=decoder).astype(int) - stored).max()
        assert difference <= max(4, (high - low) * 0.004), decoder
    assert dataset.LossyImageCompression == "01"
    assert dataset.LossyImageCompressionRatio > 1
    assert dataset.LossyImageCompressionMethod.startswith("ISO_")


def test_a_second_loss_is_added_to_the_first() -> None:
    dataset = radiograph(RAMP, transfer_syntax=JPEGBaseline8Bit)
    again = build_radiograph(RAMP)
    again.LossyImageCompressionRatio, again.LossyImageCompressionMethod = 5.0, "ISO_15444_1"
    encode(again, JPEGBaseline8Bit)
    assert list(again.LossyImageCompressionRatio) == [5.0, dataset.LossyImageCompressionRatio]
    assert list(again.LossyImageCompressionMethod) == ["ISO_15444_1", "ISO_10918_1"]


@pytest.mark.parametrize("syntax", COMPRESSED, ids=keyword)
def test_every_frame_is_one_fragment_of_even_length(syntax: UID) -> None:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    dataset = radiograph(RAMP[:15, :13], bits=bits, frames=3, transfer_syntax=syntax)
    count, _ = parse_fragments(dataset.PixelData[8 + int.from_bytes(dataset.PixelData[4:8], "little") :])
    frames = list(generate_frames(dataset.PixelData, number_of_frames=3))
    assert count == len(frames) == 3
    assert all(len(frame) % 2 == 0 for frame in frames)
    assert dataset["PixelData"].VR == "OB"
    assert dataset["PixelData"].is_undefined_length


def codestream(syntax: UID, **details: Any) -> bytes:
    dataset = radiograph(Image.linear_gradient("L"), transfer_syntax=syntax, **details)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


@pytest.mark.parametrize(
    ("syntax", "start_of_frame"),
    [(JPEGBaseline8Bit, 0xC0), (JPEGExtended12Bit, 0xC1), (JPEGLosslessSV1, 0xC3), (JPEGLossless, 0xC3)],
    ids=str,
)
def test_jpeg_names_its_process_and_precision(syntax: UID, start_of_frame: int) -> None:
    code = codestream(syntax)
    at = code.index(bytes([0xFF, start_of_frame]))
    assert code[at + 4] == (8 if syntax == JPEGBaseline8Bit else 12)


@pytest.mark.parametrize("predictor", range(1, 8))
def test_only_process_14_takes_another_predictor_than_the_first(predictor: int) -> None:
    effort = Effort(predictor=predictor)
    for syntax, expected in ((JPEGLossless, predictor), (JPEGLosslessSV1, 1)):
        code = codestream(syntax, effort=effort)
        assert code[code.index(b"\xff\xda") + 7] == expected  # Ss of the scan header (ITU-T T.81, B.2.3)


@pytest.mark.parametrize(
    ("syntax", "reversible"),
    [
        (JPEG2000Lossless, True),
        (JPEG2000, False),
        (HTJ2KLossless, True),
        (HTJ2KLosslessRPCL, True),
        (HTJ2KLossy, False),
    ],
    ids=str,
)
def test_jpeg_2000_is_a_bare_codestream_of_the_right_wavelet_and_precision(syntax: UID, reversible: bool) -> None:
    code = codestream(syntax, signed=True, kind="CR")
    cod = code.index(b"\xff\x52")
    assert code.startswith(b"\xff\x4f\xff\x51")
    assert code[cod + 13] == (1 if reversible else 0)
    assert code[code.index(b"\xff\x51") + 40] == 0x80 | 11  # signed, 12 bits


@pytest.mark.parametrize("longest", [100, 5000])
def test_htj2k_rpcl_has_that_order_tile_lengths_and_a_thumbnail(longest: int) -> None:
    code = codestream(HTJ2KLosslessRPCL, size=longest)
    cod = code.index(b"\xff\x52")
    assert code[cod + 5] == 2  # RPCL (ISO/IEC 15444-1, table A.16)
    assert longest / 2 ** code[cod + 9] <= 64
    assert b"\xff\x55" in code[: code.index(b"\xff\x93")]  # TLM


@pytest.mark.parametrize("near", [1, 3])
def test_jpeg_ls_near_lossless_differs_by_no_more_than_it_may(near: int) -> None:
    dataset = radiograph(RAMP, bits=16, transfer_syntax=JPEGLSNearLossless, effort=Effort(near=near))
    difference = np.abs(dataset.pixel_array.astype(int) - radiograph(RAMP, bits=16).pixel_array).max()
    assert difference <= near


@pytest.mark.parametrize("near", [1, 2, 7])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_ls_near_lossless_never_goes_beyond_white(near: int, bits: int) -> None:
    """What does would be black to a reader that masks to Bits Stored."""
    highest = (1 << bits) - 1
    stored = np.random.default_rng(near).integers(highest - 9, highest + 1, (48, 64))
    pixels, effort = Pixels(bits), Effort(near=near)
    dataset = build_radiograph(stored, pixels=pixels, transfer_syntax=JPEGLSNearLossless, effort=effort)
    back = dataset.pixel_array.astype(int)
    assert back.max() <= highest
    assert np.abs(back - stored).max() <= 2 * near


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=keyword)
@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE"])
def test_colour_comes_back_in_every_transfer_syntax_that_can_hold_it(syntax: UID, colour: Any) -> None:
    if colour == "PALETTE" and syntax in LOSSY:
        with pytest.raises(EncodeError, match="colours"):
            radiograph(RAMP, kind="SC", colour=colour, transfer_syntax=syntax)
        return
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (5, 4) if colour == "PALETTE" else (5, 4, 3))
    stored = small.repeat(8, axis=0).repeat(8, axis=1)  # the same chroma in neighbours, as 4:2:2 wants
    photometric: Any = "PALETTE COLOR" if colour == "PALETTE" else colour
    dataset = reread(
        build_radiograph(stored, kind="SC", pixels=Pixels(photometric=photometric), transfer_syntax=syntax)
    )
    if colour == "PALETTE":
        assert np.array_equal(pixel_array(dataset), stored)
        return
    decoder = next(iter(DECODERS.get(syntax, ("",))))
    # JPEG with loss always stores YBR; raw=True would then show it.
    raw = not (syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and colour == "RGB")
    difference = np.abs(pixel_array(dataset, raw=raw, decoding_plugin=decoder).astype(int) - stored)
    # In the middle of each square: at its edges chroma is mixed with the neighbour's.
    assert difference[3::8, 3::8].max() <= 8 if syntax in LOSSY else not difference.any()
    assert dataset.SamplesPerPixel == 3
    assert dataset.PlanarConfiguration == (1 if syntax == RLELossless else 0)


@pytest.mark.parametrize(
    ("syntax", "stored", "expected"),
    [
        (JPEGBaseline8Bit, "RGB", "YBR_FULL_422"),
        (JPEG2000Lossless, "RGB", "YBR_RCT"),
        (JPEG2000, "RGB", "YBR_ICT"),
        (HTJ2KLossless, "RGB", "YBR_RCT"),
        (HTJ2KLossy, "RGB", "YBR_ICT"),
        (JPEGLSLossless, "RGB", "RGB"),
        (JPEGLosslessSV1, "YBR_FULL_422", "YBR_FULL"),
        (RLELossless, "YBR_FULL_422", "YBR_FULL"),
        (JPEGBaseline8Bit, "YBR_FULL", "YBR_FULL_422"),
    ],
)
def test_the_header_names_the_colours_that_the_encoder_made(syntax: UID, stored: Any, expected: str) -> None:
    dataset = radiograph(RAMP, kind="SC", colour=stored, transfer_syntax=syntax)
    assert dataset.PhotometricInterpretation == expected


@pytest.mark.parametrize(
    ("syntax", "details"),
    [
        (JPEGBaseline8Bit, {"bits": 12}),
        (JPEGBaseline8Bit, {"bits": 8, "allocated": 16}),
        (JPEGExtended12Bit, {"bits": 10}),
        (JPEGExtended12Bit, {"signed": True, "kind": "CR"}),
        (JPEGLSNearLossless, {"signed": True, "kind": "CR"}),
        (MPEG2MPML, {}),
    ],
)
def test_what_a_transfer_syntax_cannot_hold_is_refused(syntax: UID, details: dict[str, Any]) -> None:
    with pytest.raises(EncodeError):
        radiograph(RAMP, transfer_syntax=syntax, **details)


def test_compressed_pixels_are_not_compressed_again() -> None:
    dataset = radiograph(RAMP, transfer_syntax=RLELossless)
    with pytest.raises(EncodeError, match="already"):
        encode(dataset, JPEG2000Lossless)


def test_the_encoders_cost_no_start_up_time() -> None:
    code = "import sys, dicom_node.wrap, console.send; sys.exit('imagecodecs' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- presentation -----------------------------------------------------------------------------------------------------


def viewed(dataset: FileDataset) -> NDArray[np.float64]:
    """Grey from 0 to 255 as pydicom presents it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a VOI LUT after a signed modality LUT
        values = apply_modality_lut(dataset.pixel_array.astype(np.int32), dataset)  # 16 bits would overflow
        if "VOILUTSequence" in dataset:
            grey = apply_voi_lut(values.astype(np.int32), dataset).astype(np.float64) / 65535
        elif "WindowCenter" in dataset:
            first, last = _ends(dataset)
            grey = (apply_windowing(values, dataset) - first) / (last - first)
        else:
            low, high = sorted(_ends(dataset))
            grey = (values - low) / (high - low)
    inverse = dataset.get("PresentationLUTShape") == "INVERSE" or dataset.PhotometricInterpretation == "MONOCHROME1"
    return 255 * (1 - grey if inverse else grey)


def _ends(dataset: Dataset) -> tuple[float, float]:
    """What the modality LUT makes of the lowest and the highest stored value: pydicom's windows span these."""
    if "ModalityLUTSequence" in dataset:
        return 0, 65535
    sign = 1 << (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return slope * -sign + intercept, slope * ((1 << dataset.BitsStored) - 1 - sign) + intercept


presentations = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["CR", "SC"]),
        "bits": st.sampled_from([10, 12, 16]),
        "signed": st.booleans(),
        "monochrome1": st.booleans(),
    },
    optional={
        "window": st.sampled_from(["full", None]),
        "voi_function": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
        "voi_lut": st.just(True),
        "modality_lut": st.just(True),
        "rescale": st.sampled_from([(1, 0), (2, -100), (0.5, 10), (-1, 1023)]),
        "lut_shape": st.sampled_from([None, "auto"]),
    },
)


@settings(max_examples=150, deadline=None)
@given(details=presentations)
def test_however_it_is_stored_the_grey_that_is_shown_is_the_pictures(details: dict[str, Any]) -> None:
    if details.get("modality_lut"):
        details.pop("rescale", None)
    if details.get("voi_lut") and (details.get("rescale", (1, 0))[0] not in (1, 2) or details["bits"] == 16):
        details.pop("rescale", None)  # a table takes whole numbers, and 65,536 of them at most
    dataset = reread(radiograph(RAMP, **details))
    # The coarsest: 10 bits through a parabola, whose steps double towards white, twice.
    assert np.abs(viewed(dataset) - RAMP).max() < 1.1


@pytest.mark.parametrize("kind", ["DX", "DX_PROCESSING"])
@pytest.mark.parametrize("monochrome1", [False, True])
def test_digital_x_ray_shows_the_picture_too(kind: Any, monochrome1: bool) -> None:
    dataset = radiograph(RAMP, kind=kind, monochrome1=monochrome1)
    assert np.abs(viewed(dataset) - RAMP).max() < 0.1
    assert dataset.PresentationLUTShape == ("INVERSE" if monochrome1 else "IDENTITY")
    assert dataset.PixelIntensityRelationshipSign == (1 if monochrome1 else -1)
    assert ("WindowCenter" in dataset) == (kind == "DX")


def test_the_first_of_several_windows_decides() -> None:
    dataset = radiograph(RAMP, bits=16, window=[(20_000, 10_000), "full"])
    assert [float(centre) for centre in dataset.WindowCenter] == [20_000, 32_768]
    assert 15_000 <= dataset.pixel_array.min() <= 15_001
    assert 24_998 <= dataset.pixel_array.max() <= 25_000


def test_a_reader_that_leaves_a_table_or_palette_out_shows_something_else() -> None:
    changes: tuple[dict[str, Any], ...] = ({"voi_lut": True}, {"modality_lut": True}, {"colour": "PALETTE"})
    for details in changes:
        dataset = radiograph(RAMP, kind="SC", **details)
        stored = dataset.pixel_array / dataset.pixel_array.max() * 255
        assert np.abs(stored - RAMP).max() > 30


@pytest.mark.parametrize("padding", [0, 4095, (0, 40), (4000, 4095), (4095, 4000), 2000])
def test_no_pixel_of_the_picture_has_a_padding_value(padding: Any) -> None:
    dataset = radiograph(RAMP, padding=padding, border=Border(0.25, sides=("left",)))
    value = padding if isinstance(padding, int) else padding[0]
    low, high = (padding, padding) if isinstance(padding, int) else sorted(padding)
    stored = dataset.pixel_array
    assert (stored[:, :4] == value).all()
    assert not ((stored[:, 4:] >= low) & (stored[:, 4:] <= high)).any()
    assert np.abs(viewed(dataset)[:, 4:] - RAMP[:, 4:]).max() < 0.3
    assert dataset.PixelPaddingValue == value


def test_padding_has_the_sign_of_the_pixels() -> None:
    signed = radiograph(RAMP, kind="CR", signed=True, padding=(-2048, -2000))
    assert (signed["PixelPaddingValue"].VR, signed["PixelPaddingRangeLimit"].VR) == ("SS", "SS")
    assert radiograph(RAMP, padding=0)["PixelPaddingValue"].VR == "US"


# --- the picture and its header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotate", "flip", "expected", "orientation"),
    [
        (0, False, RAMP, ["L", "F"]),
        (90, False, np.rot90(RAMP, -1), ["H", "L"]),
        (180, False, RAMP[::-1, ::-1], ["R", "H"]),
        (270, False, np.rot90(RAMP), ["F", "R"]),
        (0, True, RAMP[:, ::-1], ["R", "F"]),
        (90, True, np.rot90(RAMP, -1)[:, ::-1], ["F", "L"]),
    ],
)
def test_a_turned_picture_says_how_the_patient_lies(
    rotate: Any, flip: bool, expected: NDArray[np.uint8], orientation: list[str]
) -> None:
    dataset = radiograph(RAMP, bits=8, rotate=rotate, flip=flip)
    assert np.array_equal(dataset.pixel_array, expected)
    assert list(dataset.PatientOrientation) == orientation


def test_a_border_is_bright_and_may_be_slanted() -> None:
    black = np.zeros((100, 60), np.uint8)
    straight = radiograph(black, bits=8, border=Border(0.1, sides=("left", "bottom"))).pixel_array == 255
    assert straight[:, :6].all()
    assert straight[90:].all()
    assert not straight[:90, 6:].any()
    slanted = radiograph(black, bits=8, border=Border(0.1, sides=("left",), slant=0.2)).pixel_array == 255
    assert [int(slanted[row].sum()) for row in (0, 99)] == [6, 18]


def test_a_picture_of_any_sort_can_be_scaled_and_made_noisy(tmp_path: Any) -> None:
    Image.fromarray(RAMP).save(tmp_path / "ramp.png")
    wide = RAMP.astype(np.uint16) * 257
    pictures = [RAMP, wide, Image.fromarray(RAMP), Image.fromarray(wide), tmp_path / "ramp.png"]
    for picture in pictures:
        assert np.array_equal(radiograph(picture, bits=8).pixel_array, RAMP)
    assert radiograph(np.zeros((40, 80), np.uint8), size=20).pixel_array.shape == (10, 20)
    noisy = [radiograph(RAMP, bits=8, noise=5).pixel_array.astype(int) for _ in range(2)]
    assert np.array_equal(noisy[0], noisy[1])
    assert 2 < (noisy[0] - RAMP)[4:12].std() < 8


def test_attributes_can_be_left_out_emptied_and_set() -> None:
    dataset = radiograph(
        RAMP,
        omit=("PresentationLUTShape", "BodyPartExamined"),
        empty=("PatientOrientation",),
        attributes={"KVP": "60"},
        patient_id="OTHER",
        age="034Y",
    )
    assert "PresentationLUTShape" not in dataset
    assert "BodyPartExamined" not in dataset
    assert dataset["PatientOrientation"].is_empty
    assert (dataset.KVP, dataset.PatientID, dataset.PatientAge) == (60, "OTHER", "034Y")


@pytest.mark.parametrize("kind", ["DX", "DX_PROCESSING", "CR", "SC"])
def test_osteon_reads_the_header_that_it_wrote_and_does_not_take_it_for_a_result(kind: Any) -> None:
    header = read_header(reread(radiograph(RAMP, kind=kind, study_uid="1.2.3", sop_instance_uid="1.2.4")))
    assert (header.study_instance_uid, header.sop_instance_uid) == ("1.2.3", "1.2.4")
    assert (header.body_part_examined, header.laterality, header.view_position) == ("WRIST", "L", "AP")
    assert header.modality == {"CR": "CR", "SC": "OT"}.get(kind, "DX")
    assert header.patient.name == "Doe^Jane"
    assert not is_own_object(header)


def test_uids_are_drawn_unless_given() -> None:
    assert len({uid for _ in range(2) for uid in (Identity().study_uid, Identity().sop_instance_uid)}) == 4


def test_an_overlay_comes_back_bit_for_bit() -> None:
    bits = np.random.default_rng(2).random((15, 13)) < 0.5
    dataset = reread(radiograph(RAMP[:15, :13], overlay=bits))
    assert np.array_equal(dataset.overlay_array(0x6000), bits)


def test_shutters_of_every_shape_stand_together() -> None:
    shutters = (
        RectangularShutter(left=2, right=15, upper=3, lower=14),
        CircularShutter(centre=(8, 9), radius=5),
        PolygonalShutter(((1, 2), (3, 4), (5, 6))),
    )
    dataset = radiograph(RAMP, shutter=shutters)
    assert list(dataset.ShutterShape) == ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]
    assert (dataset.ShutterLeftVerticalEdge, dataset.ShutterRightVerticalEdge) == (2, 15)
    assert (dataset.ShutterUpperHorizontalEdge, dataset.ShutterLowerHorizontalEdge) == (3, 14)
    assert (list(dataset.CenterOfCircularShutter), dataset.RadiusOfCircularShutter) == ([8, 9], 5)
    assert list(dataset.VerticesOfThePolygonalShutter) == [1, 2, 3, 4, 5, 6]
    assert radiograph(RAMP, shutter=shutters[1]).ShutterShape == "CIRCULAR"


def test_a_table_of_all_16_bit_values_is_written_with_a_length_of_0() -> None:
    dataset = reread(radiograph(RAMP, bits=16, voi_lut=True))
    item = dataset.VOILUTSequence[0]
    assert list(item.LUTDescriptor) == [0, 0, 16]
    assert len(item.LUTData) == 2 * 65536


@pytest.mark.parametrize(
    ("stored", "details"),
    [
        (np.array([[256]]), {}),
        (np.array([[-1]]), {}),
        (np.array([[128]]), {"pixels": Pixels(signed=True)}),
        (np.zeros((2, 2, 3), int), {}),
        (np.zeros((2, 2), int), {"pixels": Pixels(photometric="RGB")}),
        (np.zeros((2, 2), int), {"pixels": Pixels(bits_stored=12, bits_allocated=8)}),
        (np.zeros((0, 2), int), {}),
        (np.zeros((2, 2), int), {"pixels": Pixels(voi_lut=LookupTable(np.arange(9, dtype=np.uint16), first=-40_000))}),
        (np.zeros((2, 2), int), {"laterality": "LEFT"}),
        (np.zeros((2, 2), int), {"kind": "CT"}),
        (np.zeros((2, 3, 3), int), {"pixels": Pixels(photometric="YBR_FULL_422")}),
    ],
)
def test_what_cannot_be_stored_is_refused(stored: NDArray[np.int64], details: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_radiograph(stored, **details)


def test_a_decimal_string_is_never_too_long() -> None:
    pixels = Pixels(windows=((100 / 3, 1000 / 7),), modality_lut=LookupTable(np.arange(256, dtype=np.uint16)))
    dataset = build_radiograph(RAMP, kind="CR", pixels=pixels)
    for name in ("WindowCenter", "WindowWidth"):
        assert len(str(dataset[name].value)) <= 16
