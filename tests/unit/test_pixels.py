"""From a dataset to the model's input: the same pixels give the same input, and what is wrong has a coded reason."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from dicom_node import pixels
from dicom_node.pixels import NotAnalysable, model_input, model_input_from_picture, source_pixels_digest
from models.reasons import Reason

SIZE = (150, 150)
REAL = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"
PLANTED = "PLANTED^NAME"
needs_radiographs = pytest.mark.skipif(not REAL.is_dir(), reason="OSTEON_TEST_DATA has no DICOM radiographs")


def radiograph(name: str) -> Dataset:
    return dcmread(REAL / f"WG04_{name}.dcm")


def image(stored: np.ndarray, **attributes: Any) -> Dataset:
    """A small uncompressed image; `attributes` override or, when None, remove."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientName = PLANTED
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = dataset.BitsAllocated
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset["PixelData"] = _pixel_data(stored)
    for name, value in attributes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def _pixel_data(stored: np.ndarray) -> Any:
    holder = Dataset()
    holder.add_new("PixelData", "OB" if stored.dtype.itemsize == 1 else "OW", stored.tobytes())
    return holder["PixelData"]


def ramp(rows: int = 40, columns: int = 50, high: int = 1023) -> np.ndarray:
    return np.linspace(0, high, rows * columns).reshape(rows, columns).astype(np.uint16)


def reason_of(dataset: Dataset) -> Reason:
    with pytest.raises(NotAnalysable) as refused:
        model_input(dataset, SIZE)
    assert str(refused.value) == refused.value.reason.value
    assert refused.value.__context__ is None
    assert refused.value.__cause__ is None
    return refused.value.reason


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
@pytest.mark.parametrize("encoding", ["JPLL", "JLSL", "J2KR", "RLE"])
def test_every_lossless_encoding_gives_the_input_of_the_uncompressed_image(sample: str, encoding: str) -> None:
    plain = model_input(radiograph(f"{sample}_UNC"), SIZE)
    encoded = model_input(radiograph(f"{sample}_{encoding}"), SIZE)
    assert np.array_equal(encoded.pixels, plain.pixels)
    assert encoded.pixel_digest == plain.pixel_digest


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
def test_a_codestream_no_decoder_here_can_read_is_undecodable(sample: str) -> None:
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder

    if "pylibjpeg" in JPEGExtended12BitDecoder.available_plugins:
        pytest.skip("the optional decoder of 12-bit JPEG Extended is installed")
    assert reason_of(radiograph(f"{sample}_JPLY")) is Reason.UNDECODABLE


@needs_radiographs
@pytest.mark.parametrize("windowed", [True, False])
def test_monochrome1_gives_the_input_of_its_inverted_monochrome2_copy(windowed: bool) -> None:
    negative = radiograph("RG3_UNC")
    positive = copy.deepcopy(negative)
    positive.PhotometricInterpretation = "MONOCHROME2"
    positive["PixelData"] = _pixel_data((1023 - negative.pixel_array).astype("<u2"))
    # LINEAR is centred half a step below Window Center (PS3.3 C.11.2.1.2.1).
    positive.WindowCenter = 1023 - negative.WindowCenter + 1
    if not windowed:
        for dataset in (negative, positive):
            del dataset.WindowCenter, dataset.WindowWidth
    assert np.array_equal(model_input(negative, SIZE).pixels, model_input(positive, SIZE).pixels)


@needs_radiographs
def test_in_a_real_monochrome1_radiograph_the_air_becomes_dark_and_the_bone_bright() -> None:
    drawn = model_input(radiograph("RG3_UNC"), SIZE).pixels
    air, bone = drawn[60:90, 42:48], drawn[60:90, 70:74]
    assert air.max() < 40
    assert bone.min() > 100


@needs_radiographs
@pytest.mark.parametrize("encoding", ["UNC", "JPLL", "JLSL", "J2KR", "RLE"])
def test_wrong_rows_are_found_whatever_the_encoding(encoding: str) -> None:
    dataset = radiograph(f"RG2_{encoding}")
    dataset.Rows = 2139
    assert reason_of(dataset) is Reason.SIZE_MISMATCH


@needs_radiographs
@pytest.mark.parametrize("encoding", ["UNC", "JPLL", "JLSL", "J2KR", "RLE"])
@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_truncated_pixel_data_are_never_read(encoding: str, kept: float) -> None:
    dataset = radiograph(f"RG3_{encoding}")
    data = dataset.PixelData
    dataset["PixelData"].value = data[: int(len(data) * kept) // 2 * 2]
    expected = Reason.SIZE_MISMATCH if encoding in ("UNC", "RLE") else Reason.UNDECODABLE
    assert reason_of(dataset) is expected


@needs_radiographs
def test_a_codestream_whose_end_is_missing_inside_a_whole_element_is_undecodable() -> None:
    dataset = radiograph("RG3_J2KR")
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset["PixelData"].value = encapsulate([frame[: len(frame) // 2]])
    assert reason_of(dataset) is Reason.UNDECODABLE


def test_an_image_without_pixels_says_so() -> None:
    assert reason_of(image(ramp(), PixelData=None)) is Reason.NO_PIXELS
    empty = image(ramp())
    empty["PixelData"].value = b""
    assert reason_of(empty) is Reason.NO_PIXELS


def test_several_frames_are_refused() -> None:
    assert reason_of(image(ramp(), NumberOfFrames=2)) is Reason.MULTI_FRAME


def test_a_claim_of_too_many_pixels_is_refused_before_anything_is_decoded() -> None:
    assert reason_of(image(ramp(), Rows=65_535, Columns=65_535)) is Reason.TOO_LARGE


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_missing_dimensions_do_not_match_the_pixels(name: str) -> None:
    assert reason_of(image(ramp(), **{name: None})) is Reason.SIZE_MISMATCH


def test_one_byte_of_padding_is_allowed_and_two_are_not() -> None:
    odd = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    dataset = image(odd)
    dataset["PixelData"].value = odd.tobytes() + b"\0"
    assert model_input(dataset, SIZE).source_columns == 5
    dataset["PixelData"].value = odd.tobytes() + b"\0\0\0"
    assert reason_of(dataset) is Reason.SIZE_MISMATCH


def test_an_image_of_one_value_is_blank() -> None:
    assert reason_of(image(np.full((30, 30), 7, np.uint16))) is Reason.BLANK


def test_an_image_of_one_value_and_padding_is_blank() -> None:
    stored = np.full((30, 30), 7, np.uint16)
    stored[:5] = 99
    assert reason_of(image(stored, PixelPaddingValue=99)) is Reason.BLANK


def test_padding_does_not_set_the_contrast_and_is_black() -> None:
    stored = ramp(60, 60, 100)
    padded = stored.copy()
    padded[:20] = 4000
    unpadded = model_input(image(stored[20:]), (40, 60)).pixels
    drawn = model_input(image(padded, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1"), (60, 60)).pixels
    assert drawn[:20].max() == 0
    assert np.abs(drawn[22:].astype(int) - (255 - unpadded[2:].astype(int))).max() <= 1


def test_bits_above_bits_stored_are_ignored() -> None:
    clean, dirty = ramp(), ramp() | np.uint16(0x8000)
    assert np.array_equal(
        model_input(image(dirty, BitsStored=10), SIZE).pixels, model_input(image(clean, BitsStored=10), SIZE).pixels
    )
    assert source_pixels_digest(image(dirty, BitsStored=10)) == source_pixels_digest(image(clean, BitsStored=10))


def test_signed_values_are_read_as_signed() -> None:
    unsigned = ramp(high=1000)
    signed = (unsigned.astype(np.int32) - 500).astype(np.int16)
    assert np.array_equal(model_input(image(signed), SIZE).pixels, model_input(image(unsigned), SIZE).pixels)
    # Stored in 12 bits, the sign is bit 11 and the bits above it may hold anything.
    twelve = (signed.astype(np.uint16) & np.uint16(0x0FFF)).astype(np.int16)
    assert np.array_equal(
        model_input(image(twelve, BitsStored=12), SIZE).pixels, model_input(image(unsigned), SIZE).pixels
    )


def test_a_header_change_leaves_the_digest_and_a_pixel_changes_it() -> None:
    one = ramp()
    other = one.copy()
    other[3, 3] += 1
    assert source_pixels_digest(image(one)) == source_pixels_digest(
        image(one, WindowCenter=3, WindowWidth=9, PhotometricInterpretation="MONOCHROME1")
    )
    assert source_pixels_digest(image(one)) != source_pixels_digest(image(other))
    assert source_pixels_digest(image(one)) != source_pixels_digest(image(one.reshape(50, 40)))
    assert model_input(image(one), SIZE).pixel_digest == source_pixels_digest(image(one))


@pytest.mark.parametrize(
    ("function", "expected"),
    [("LINEAR", [0, 0.0, 0.5005, 1.0, 1]), ("LINEAR_EXACT", [0, 0.0, 0.5, 1.0, 1]), ("SIGMOID", None)],
)
def test_the_first_window_is_applied_as_the_standard_says(function: str, expected: list[float] | None) -> None:
    stored = np.array([[0, 100, 600, 1100, 2000]], np.uint16)
    dataset = image(stored, WindowCenter=[600, 5], WindowWidth=[1000, 5], VOILUTFunction=function)
    if expected is None:
        expected = [1 / (1 + np.exp(-4 * (x - 600) / 1000)) for x in stored[0].tolist()]
    drawn = model_input(dataset, (1, 5)).pixels[0] / 255
    assert np.allclose(drawn, expected, atol=1 / 255)


def test_rescale_comes_before_the_window() -> None:
    stored = ramp()
    rescaled = image(stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=900, WindowWidth=801)
    plain = image(stored, WindowCenter=500.25, WindowWidth=401)
    difference = model_input(rescaled, SIZE).pixels.astype(int) - model_input(plain, SIZE).pixels.astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lookup_tables_are_applied(sequence: str) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 8])
    table.add_new("LUTData", "US", list(range(255, -1, -1)))
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    plain = model_input(image(stored, WindowCenter=128, WindowWidth=256), (16, 16)).pixels
    turned = image(stored, **{sequence: [table]})
    if sequence == "ModalityLUTSequence":
        turned.WindowCenter, turned.WindowWidth = 128, 256
    assert np.array_equal(model_input(turned, (16, 16)).pixels, 255 - plain)


def test_colour_becomes_its_luminance() -> None:
    grey = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
    colour = np.repeat(grey[..., None], 3, axis=2)
    from_colour = model_input(image(colour), (10, 25)).pixels
    assert np.array_equal(from_colour, grey)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PhotometricInterpretation": "CMYK"},
        {"PhotometricInterpretation": None},
        {"BitsAllocated": 32},
        {"BitsAllocated": None},
        {"BitsStored": 17},
        {"SamplesPerPixel": 3},
        {"PixelRepresentation": None},
        {"RescaleSlope": 0},
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": 10, "VOILUTFunction": "CUBIC"},
    ],
)
def test_pixels_described_wrongly_are_unsupported(attributes: dict[str, Any]) -> None:
    assert reason_of(image(ramp(), **attributes)) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope", "BitsStored", "Rows", "NumberOfFrames"])
@pytest.mark.parametrize("value", ["garbage", "\\\\", "1e999", "nan", ["x", "y"]])
def test_garbage_in_the_header_gives_a_reason_and_nothing_else(keyword: str, value: Any) -> None:
    dataset = image(ramp(), WindowCenter=500, WindowWidth=900)
    dataset[keyword] = dataset[keyword] if keyword in dataset else _garbage_element(keyword)
    dataset[keyword]._value = value
    assert isinstance(reason_of(dataset), Reason)


def _garbage_element(keyword: str) -> Any:
    holder = Dataset()
    setattr(holder, keyword, 1)
    return holder[keyword]


def test_a_dataset_without_a_transfer_syntax_is_undecodable() -> None:
    dataset = image(ramp())
    del dataset.file_meta.TransferSyntaxUID
    assert reason_of(dataset) is Reason.UNDECODABLE


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless])
@pytest.mark.parametrize("data", [b"\0" * 64, b"\xfe\xff\x00\xe0", b"junk" * 40])
def test_a_codestream_of_garbage_is_undecodable(syntax: str, data: bytes) -> None:
    dataset = image(ramp())
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].value = data
    assert reason_of(dataset) is Reason.UNDECODABLE


def test_a_codestream_larger_than_the_header_says_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # SOC and SIZ of a JPEG 2000 image of 1,000,000 × 1,000,000.
    siz = (0).to_bytes(2, "big") + b"".join(n.to_bytes(4, "big") for n in (10**6, 10**6, 0, 0, 9, 9, 0, 0)) + b"\0\1"
    dataset = image(ramp())
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset["PixelData"].value = encapsulate([b"\xff\x4f\xff\x51\x00\x29" + siz + b"\0" * 20 + b"\xff\xd9"])

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pixels, "pixel_array", decode)
    assert reason_of(dataset) is Reason.SIZE_MISMATCH


def test_the_input_is_letterboxed_in_the_middle_and_read_only() -> None:
    drawn = model_input(image(ramp(100, 200) + np.uint16(200)), (60, 100))
    assert drawn.pixels.shape == (60, 100)
    assert drawn.pixels.dtype == np.uint8
    assert drawn.pixels.flags.c_contiguous
    assert not drawn.pixels.flags.writeable
    assert (drawn.scale, drawn.left, drawn.top) == (0.5, 0.0, 5.0)
    assert drawn.pixels[:5].max() == drawn.pixels[-5:].max() == 0


@pytest.mark.parametrize("shape", [(2140, 1760), (1760, 2141), (33, 7), (150, 150), (3, 900)])
def test_the_corners_of_the_drawn_image_map_to_the_corners_of_the_source(shape: tuple[int, int]) -> None:
    drawn = model_input(image(ramp(*shape)), SIZE)
    height, width = (max(1, round(length * drawn.scale)) for length in shape)
    assert drawn.to_source(drawn.left, drawn.top) == (0.0, 0.0)
    assert drawn.to_source(drawn.left + width, drawn.top + height) == pytest.approx((shape[1], shape[0]))
    assert drawn.to_source(-50, 500) == pytest.approx((0.0, shape[0]))
    middle = drawn.to_source(drawn.left + width / 2, drawn.top + height / 2)
    assert middle == pytest.approx((shape[1] / 2, shape[0] / 2))


def test_a_bright_spot_is_mapped_back_to_where_it_was() -> None:
    stored = np.full((1500, 900), 10, np.uint16)
    stored[1100:1140, 300:340] = 1000
    drawn = model_input(image(stored, WindowCenter=500, WindowWidth=1000), SIZE)
    row, column = np.unravel_index(int(drawn.pixels.argmax()), SIZE)
    assert drawn.to_source(column + 0.5, row + 0.5) == pytest.approx((320, 1120), abs=10)


def test_fine_stripes_are_averaged_instead_of_aliased() -> None:
    stripes = np.zeros((1000, 1000), np.uint16)
    stripes[:, ::2] = 1000
    stripes[:20] = 0
    drawn = model_input(image(stripes, WindowCenter=500, WindowWidth=1001), SIZE).pixels[10:]
    assert drawn.min() >= 120
    assert drawn.max() <= 135


def test_a_picture_gives_the_input_of_a_dicom_image_with_its_grey_values(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(30, axis=0).repeat(9, axis=1)
    Image.fromarray(grey).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        from_picture = model_input_from_picture(picture, SIZE)
    from_dicom = model_input(image(grey, WindowCenter=128, WindowWidth=256), SIZE)
    assert np.array_equal(from_picture.pixels, from_dicom.pixels)
    assert from_picture.pixel_digest == from_dicom.pixel_digest


def test_a_16_bit_picture_gives_the_input_of_a_dicom_image_without_a_window() -> None:
    from_picture = model_input_from_picture(Image.fromarray(ramp()), SIZE)
    assert np.array_equal(from_picture.pixels, model_input(image(ramp()), SIZE).pixels)


def test_colour_pictures_are_read_by_their_luminance() -> None:
    grey = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
    for mode in ("RGB", "RGBA", "P", "LA"):
        assert np.array_equal(model_input_from_picture(Image.fromarray(grey).convert(mode), (10, 25)).pixels, grey)


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


def test_a_model_size_that_is_not_positive_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="positive"):
        model_input(image(ramp()), (0, 150))
