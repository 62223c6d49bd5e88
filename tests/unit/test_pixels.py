"""From a radiograph to the model's input: the same radiograph gives the same input, and what is wrong has a reason.

The steps have tests of their own in `tests/unit/image/`; here stands what they promise together.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1, RLELossless

from dicom_node.image import decode
from dicom_node.objects.radiograph import CircularShutter, RectangularShutter
from dicom_node.pixels import (
    PIPELINE_VERSION,
    ModelInput,
    NotAnalysable,
    grey_picture,
    model_input,
    model_input_from_picture,
    source_pixels_digest,
)
from models.reasons import Reason
from tests.phantom import PLANTED, dataset, limb, pixel_data
from tests.radiographs import Border, radiograph

SIZE = (150, 150)
REAL = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"
needs_radiographs = pytest.mark.skipif(not REAL.is_dir(), reason="OSTEON_TEST_DATA has no DICOM radiographs")


def real(name: str) -> Dataset:
    return dcmread(REAL / f"WG04_{name}.dcm")


def off(one: ModelInput, other: ModelInput) -> NDArray[np.int64]:
    """How far two inputs are apart, in greys of 0 to 255."""
    return np.abs(one.pixels.astype(np.int64) - other.pixels.astype(np.int64))


def reason_of(source: Dataset) -> Reason:
    with pytest.raises(NotAnalysable) as refused:
        model_input(source, SIZE)
    assert str(refused.value) == refused.value.reason.value
    assert refused.value.__context__ is None
    assert refused.value.__cause__ is None
    return refused.value.reason


# --- the same radiograph, the same input ------------------------------------------------------------------------------

REFERENCE = limb(480, 400)
PRESENTATIONS: dict[str, dict[str, Any]] = {
    "12 bits": {},
    "no window": {"window": None},
    "MONOCHROME1": {"monochrome1": True},
    "MONOCHROME1 without a window": {"monochrome1": True, "window": None},
    "MONOCHROME1 without a shape": {"monochrome1": True, "lut_shape": None},
    "several windows": {"window": ["full", (100, 50)]},
    "LINEAR_EXACT": {"voi_function": "LINEAR_EXACT"},
    "a wide window": {"window": None, "attributes": {"WindowCenter": 2000, "WindowWidth": 9000}},
    "a VOI LUT": {"voi_lut": True},
    "a modality LUT": {"modality_lut": True},
    "rescaled and turned over": {"rescale": (-2.0, 100.0)},
    "signed": {"kind": "CR", "signed": True},
    "8 in 8 bits": {"bits": 8},
    "8 in 16 bits": {"bits": 8, "allocated": 16},
    "10 bits": {"bits": 10},
    "16 bits without a window": {"bits": 16, "window": None},
    "an overlay": {"overlay": True},
    "CR": {"kind": "CR"},
    "grey Secondary Capture": {"kind": "SC", "bits": 8},
    "RGB": {"kind": "SC", "colour": "RGB"},
    "YBR_FULL": {"kind": "SC", "colour": "YBR_FULL"},
    "YBR_FULL_422": {"kind": "SC", "colour": "YBR_FULL_422"},
    "a palette": {"kind": "SC", "colour": "PALETTE"},
    "missing type 2 attributes": {
        "omit": ("PatientSex", "PatientBirthDate", "StudyID", "AccessionNumber", "PatientOrientation")
    },
    "empty type 2 attributes": {"empty": ("PatientSex", "PatientBirthDate", "StudyID", "ReferringPhysicianName")},
}


@pytest.mark.parametrize("name", PRESENTATIONS)
def test_however_it_is_stored_and_presented_the_input_is_off_by_one_grey_at_most(name: str) -> None:
    picture = model_input_from_picture(Image.fromarray(REFERENCE), SIZE)
    assert off(model_input(radiograph(REFERENCE, **PRESENTATIONS[name]), SIZE), picture).max() <= 1


@pytest.mark.parametrize("name", ["12 bits", "MONOCHROME1 without a window", "RGB"])
def test_at_2500_pixels_the_input_is_that_of_the_same_radiograph_at_480(name: str) -> None:
    small = model_input(radiograph(REFERENCE, **PRESENTATIONS[name]), SIZE)
    large = model_input(radiograph(REFERENCE, size=2500, **PRESENTATIONS[name]), SIZE)
    assert off(small, large).mean() < 1
    assert np.percentile(off(small, large), 99) <= 6


def test_a_sigmoid_window_changes_the_grey_and_not_the_reading_of_it() -> None:
    linear = model_input(radiograph(REFERENCE), SIZE).pixels.astype(float)
    sigmoid = model_input(radiograph(REFERENCE, voi_function="SIGMOID"), SIZE).pixels.astype(float)
    assert np.corrcoef(linear.ravel(), sigmoid.ravel())[0, 1] > 0.98


def test_a_white_border_gives_nearly_the_input_of_a_shutter_in_its_place() -> None:
    shutter = RectangularShutter(left=49, right=352, upper=59, lower=422)
    bordered = model_input(radiograph(REFERENCE, border=Border(0.12), window=None), SIZE)
    shuttered = model_input(radiograph(REFERENCE, shutter=shutter, window=None), SIZE)
    assert off(bordered, shuttered).mean() < 2
    assert np.allclose(bordered.box, shuttered.box, atol=5)


AROUND: dict[str, dict[str, Any]] = {
    "padding": {"PixelPaddingValue": 4095},
    "a shutter": {
        "ShutterShape": "RECTANGULAR",
        "ShutterLeftVerticalEdge": 41,
        "ShutterRightVerticalEdge": 440,
        "ShutterUpperHorizontalEdge": 41,
        "ShutterLowerHorizontalEdge": 520,
    },
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_lies_around_an_image_as_its_header_says_leaves_no_trace(name: str, photometric: str) -> None:
    stored = REFERENCE.astype(np.uint16) * 4
    plain = model_input(dataset(stored, PhotometricInterpretation=photometric), SIZE)
    around = np.pad(stored, 40, constant_values=4095)
    drawn = model_input(dataset(around, PhotometricInterpretation=photometric, **AROUND[name]), SIZE)
    assert np.array_equal(drawn.pixels, plain.pixels)
    assert drawn.box == (40, 40, 440, 520)
    assert drawn.to_source(drawn.left, drawn.top) == (40, 40)
    assert drawn.to_source(75, 75) == pytest.approx((240, 280))


def test_a_white_border_around_an_image_leaves_next_to_no_trace() -> None:
    stored = REFERENCE.astype(np.uint16) * 4
    drawn = model_input(dataset(np.pad(stored, 40, constant_values=4095)), SIZE)
    assert off(drawn, model_input(dataset(stored), SIZE)).mean() < 2


def test_outside_a_circular_shutter_all_is_black() -> None:
    shutter = CircularShutter(centre=(240, 200), radius=150)
    drawn = model_input(radiograph(REFERENCE, shutter=shutter, monochrome1=True), (300, 300))
    y, x = np.mgrid[0:300, 0:300] - 149.5
    assert drawn.pixels[x**2 + y**2 > 153**2].max() == 0
    assert drawn.pixels[150].max() > 100
    assert drawn.box == pytest.approx((50, 90, 350, 390), abs=2)


@pytest.mark.parametrize("bright", [True, False])
def test_a_burnt_in_marker_changes_nothing_around_it(bright: bool) -> None:
    marked = REFERENCE.copy()
    marked[20:40, 20:32] = 255 if bright else 0
    plain, with_marker = (model_input(radiograph(picture), SIZE) for picture in (REFERENCE, marked))
    difference = off(plain, with_marker)
    difference[:20, :40] = 0
    assert difference.max() <= 6


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(150, 150), (149, 149)])
def test_a_turned_or_flipped_source_gives_the_turned_or_flipped_input(
    turns: int, flip: bool, size: tuple[int, int]
) -> None:
    def turned(image: NDArray[Any]) -> NDArray[Any]:
        return np.rot90(image[:, ::-1] if flip else image, turns)

    upright = model_input(dataset(limb(373, 454)), size).pixels
    found = model_input(dataset(np.ascontiguousarray(turned(limb(373, 454)))), size).pixels
    assert np.abs(found.astype(int) - turned(upright).astype(int)).max() <= 1


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
@pytest.mark.parametrize("encoding", ["JPLL", "JLSL", "J2KR", "RLE"])
def test_every_lossless_encoding_gives_the_input_of_the_uncompressed_image(sample: str, encoding: str) -> None:
    plain = model_input(real(f"{sample}_UNC"), SIZE)
    encoded = model_input(real(f"{sample}_{encoding}"), SIZE)
    assert np.array_equal(encoded.pixels, plain.pixels)
    assert encoded.pixel_digest == plain.pixel_digest


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
def test_a_12_bit_jpeg_with_an_illegal_scan_header_gives_nearly_the_input_of_its_original(sample: str) -> None:
    assert off(model_input(real(f"{sample}_UNC"), SIZE), model_input(real(f"{sample}_JPLY"), SIZE)).mean() < 2


@needs_radiographs
@pytest.mark.parametrize("windowed", [True, False])
def test_monochrome1_gives_the_input_of_its_inverted_monochrome2_copy(windowed: bool) -> None:
    negative = real("RG3_UNC")
    positive = copy.deepcopy(negative)
    positive.PhotometricInterpretation = "MONOCHROME2"
    positive["PixelData"] = pixel_data((1023 - negative.pixel_array).astype("<u2"))
    # LINEAR is centred half a step below Window Center (PS3.3 C.11.2.1.2.1).
    positive.WindowCenter = 1023 - negative.WindowCenter + 1
    if not windowed:
        for source in (negative, positive):
            del source.WindowCenter, source.WindowWidth
    assert off(model_input(negative, SIZE), model_input(positive, SIZE)).max() <= 1


@needs_radiographs
def test_in_a_real_monochrome1_radiograph_the_air_becomes_dark_and_the_bone_bright() -> None:
    drawn = model_input(real("RG3_UNC"), SIZE)
    # Between the two white borders of the film, which are cropped away.
    assert drawn.box == pytest.approx((451, 0, 1243, 1760), abs=10)
    air, bone = drawn.pixels[60:90, 46:52], drawn.pixels[60:90, 73:77]
    assert air.max() < 40
    assert bone.min() > 100


# --- digests ----------------------------------------------------------------------------------------------------------


def test_a_header_change_leaves_the_digest_and_a_pixel_changes_it() -> None:
    one = limb(dtype=np.uint16, highest=1000)
    other = one.copy()
    other[3, 3] += 1
    assert source_pixels_digest(dataset(one)) == source_pixels_digest(
        dataset(one, WindowCenter=3, WindowWidth=9, PhotometricInterpretation="MONOCHROME1")
    )
    assert source_pixels_digest(dataset(one)) != source_pixels_digest(dataset(other))
    assert source_pixels_digest(dataset(one)) != source_pixels_digest(dataset(one.reshape(96, 120)))
    assert model_input(dataset(one), SIZE).pixel_digest == source_pixels_digest(dataset(one))


def test_values_have_one_digest_however_many_bits_are_allocated() -> None:
    narrow, wide = limb(), limb().astype(np.uint16)
    assert source_pixels_digest(dataset(narrow)) == source_pixels_digest(dataset(wide, BitsStored=8))
    dirty = wide | np.uint16(0x8000)
    assert source_pixels_digest(dataset(dirty, BitsStored=8)) == source_pixels_digest(dataset(narrow))


def test_negative_values_are_not_the_positive_ones_of_the_same_bits() -> None:
    signed = np.array([[-1, 5]], np.int16)
    assert source_pixels_digest(dataset(signed)) != source_pixels_digest(dataset(signed.view(np.uint16)))


# --- where things are -------------------------------------------------------------------------------------------------


def test_the_input_is_letterboxed_in_the_middle_and_read_only() -> None:
    drawn = model_input(dataset(limb(100, 200)), (60, 100))
    assert drawn.pixels.shape == (60, 100)
    assert drawn.pixels.dtype == np.uint8
    assert drawn.pixels.flags.c_contiguous
    assert not drawn.pixels.flags.writeable
    assert (drawn.scale, drawn.left, drawn.top) == (0.5, 0.0, 5.0)
    assert drawn.pixels[:5].max() == drawn.pixels[-5:].max() == 0


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(50, 700), st.integers(50, 700)),
    st.tuples(st.integers(40, 400), st.integers(40, 400)),
)
def test_the_corners_of_the_drawn_image_map_to_the_corners_of_the_source(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    drawn = model_input(dataset(limb(*shape)), size)
    right, bottom = size[1] - drawn.left, size[0] - drawn.top
    assert drawn.to_source(drawn.left, drawn.top) == (0.0, 0.0)
    assert drawn.to_source(right, bottom) == pytest.approx((shape[1], shape[0]))
    assert drawn.to_source(-5000, 5000) == pytest.approx((0.0, shape[0]))
    assert drawn.to_source(size[1] / 2, size[0] / 2) == pytest.approx((shape[1] / 2, shape[0] / 2))


@pytest.mark.parametrize("at", [(1110, 310), (300, 700), (1400, 450)])
def test_a_bright_spot_is_mapped_back_to_where_it_was(at: tuple[int, int]) -> None:
    stored = limb(1500, 900, highest=500, dtype=np.uint16)
    stored[at[0] - 40 : at[0] + 40, at[1] - 40 : at[1] + 40] = 4000
    drawn = model_input(dataset(stored, WindowCenter=2000, WindowWidth=4001), SIZE)
    spot = np.argwhere(drawn.pixels == drawn.pixels.max()).mean(axis=0) + 0.5
    assert drawn.to_source(spot[1], spot[0]) == pytest.approx((at[1], at[0]), abs=6)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_gives_the_input_of_a_dicom_image_with_its_grey_values(tmp_path: Path) -> None:
    Image.fromarray(REFERENCE).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        from_picture = model_input_from_picture(picture, SIZE)
    from_dicom = model_input(dataset(REFERENCE, WindowCenter=128, WindowWidth=256), SIZE)
    assert np.array_equal(from_picture.pixels, from_dicom.pixels)
    assert from_picture.pixel_digest == from_dicom.pixel_digest


def test_a_16_bit_picture_gives_the_input_of_its_8_bit_copy() -> None:
    wide = Image.fromarray(REFERENCE.astype(np.uint16) * 257)
    assert (
        off(model_input_from_picture(wide, SIZE), model_input_from_picture(Image.fromarray(REFERENCE), SIZE)).max() == 0
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_in_a_colour_picture_is_the_same_grey(mode: str) -> None:
    plain = Image.fromarray(REFERENCE)
    assert off(model_input_from_picture(plain.convert(mode), SIZE), model_input_from_picture(plain, SIZE)).max() <= 1


def test_what_is_transparent_is_black() -> None:
    picture = Image.fromarray(REFERENCE).convert("RGBA")
    picture.paste((255, 255, 255, 0), (0, 0, 400, 60))
    assert model_input_from_picture(picture, SIZE).pixels[:16].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(REFERENCE)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    stored.save(tmp_path / "camera.png", exif=exif)
    with Image.open(tmp_path / "camera.png") as picture:
        drawn = model_input_from_picture(picture, SIZE)
    assert off(drawn, model_input_from_picture(upright, SIZE)).max() == 0
    assert (drawn.source_rows, drawn.source_columns) == REFERENCE.shape


def test_pictures_that_cannot_be_read_have_reasons(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (200, 200), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(NotAnalysable, match=r"^undecodable$"):
        model_input_from_picture(picture, SIZE)
    with pytest.raises(NotAnalysable, match=r"^blank$"):
        model_input_from_picture(Image.new("L", (20, 20), 9), SIZE)
    with pytest.raises(NotAnalysable, match=r"^unsupported_pixels$"):
        model_input_from_picture(Image.new("F", (20, 20)), SIZE)
    Image.fromarray(REFERENCE).save(tmp_path / "two.png", save_all=True, append_images=[Image.fromarray(noise)])
    with Image.open(tmp_path / "two.png") as picture, pytest.raises(NotAnalysable, match=r"^multi_frame$"):
        model_input_from_picture(picture, SIZE)


# --- what is wrong has a reason ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope", "BitsStored", "Rows", "NumberOfFrames"])
@pytest.mark.parametrize("value", ["garbage", "\\\\", "1e999", "nan", ["x", "y"]])
def test_garbage_in_the_header_gives_a_reason_and_nothing_else(keyword: str, value: Any) -> None:
    source = dataset(limb(dtype=np.uint16), WindowCenter=500, WindowWidth=900)
    if keyword not in source:
        setattr(source, keyword, 1)
    source[keyword]._value = value
    assert isinstance(reason_of(source), Reason)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless])
@pytest.mark.parametrize("data", [b"\0" * 64, b"\xfe\xff\x00\xe0", b"junk" * 40])
def test_a_codestream_of_garbage_is_undecodable(syntax: str, data: bytes) -> None:
    source = dataset(limb())
    source.file_meta.TransferSyntaxUID = syntax
    source["PixelData"].value = data
    assert reason_of(source) is Reason.UNDECODABLE


def test_a_codestream_larger_than_the_header_says_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # SOC and SIZ of a JPEG 2000 image of 1,000,000 × 1,000,000.
    numbers = b"".join(number.to_bytes(4, "big") for number in (10**6, 10**6, 0, 0, 10**6, 10**6, 0, 0))
    siz = b"\xff\x51\x00\x29\0\0" + numbers + b"\0\1\7\1\1"
    source = dataset(limb())
    source.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    source["PixelData"].value = encapsulate([b"\xff\x4f" + siz + b"\0" * 20 + b"\xff\xd9"])
    monkeypatch.setattr(decode, "_DECODERS", dict.fromkeys(decode._DECODERS, _never))
    assert reason_of(source) is Reason.SIZE_MISMATCH


def _never(*_: object) -> None:
    raise AssertionError("decoded")


def test_a_refusal_says_nothing_of_the_patient() -> None:
    source = dataset(limb())
    source["PhotometricInterpretation"]._value = PLANTED
    assert reason_of(source) is Reason.UNSUPPORTED_PIXELS


def test_a_model_size_that_is_not_positive_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="positive"):
        model_input(dataset(limb()), (0, 150))


def test_the_version_is_the_one_that_these_outputs_belong_to() -> None:
    """Change the digest only together with PIPELINE_VERSION: bundles are bound to it."""
    import hashlib

    drawn = model_input(dataset(limb(300, 250)), (64, 64)).pixels.astype(int)
    # Coarse, so that rounding on another processor does not show: 8 × 8 means in steps of 4.
    coarse = (drawn.reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 4).round().astype(np.uint8)
    assert (PIPELINE_VERSION, hashlib.sha256(coarse.tobytes()).hexdigest()[:16]) == (2, "84beae898842fd8b")


# --- the picture for people ---


@pytest.mark.parametrize(("longest", "expected"), [(1024, (480, 240)), (100, (100, 50)), (7, (7, 4))])
def test_the_picture_for_people_is_the_whole_image_at_most_as_long_as_asked_for(
    longest: int, expected: tuple[int, int]
) -> None:
    assert grey_picture(radiograph(limb(480, 240)), longest).shape == expected


def test_the_picture_for_people_has_the_contrast_that_the_model_sees() -> None:
    source = radiograph(limb(480, 240))
    picture, seen = grey_picture(source, 480), model_input(source, (480, 480))
    drawn = seen.pixels[:, int(seen.left) : int(seen.left) + 240]
    assert np.abs(picture.astype(int) - drawn).max() <= 1


def test_a_monochrome1_picture_is_turned_over_for_people_too() -> None:
    upright, inverse = radiograph(limb(480, 240)), radiograph(limb(480, 240), monochrome1=True)
    assert np.abs(grey_picture(upright, 480).astype(int) - grey_picture(inverse, 480)).max() <= 1


def test_a_picture_of_a_blank_image_is_refused_with_its_reason() -> None:
    with pytest.raises(NotAnalysable) as refused:
        grey_picture(radiograph(np.full((64, 64), 7, dtype=np.uint8)), 64)
    assert refused.value.reason is Reason.BLANK
