"""Stored values: every encoding gives those of the uncompressed image, and what does not fit its header is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagecodecs import jpeg2k_encode, jpeg8_encode, jpegls_encode
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
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

from dicom_node.image.decode import decode
from dicom_node.image.refusal import NotAnalysable
from models.reasons import Reason
from tests.phantom import dataset, limb, pixel_data
from tests.radiographs import radiograph

REAL = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"
needs_radiographs = pytest.mark.skipif(not REAL.is_dir(), reason="OSTEON_TEST_DATA has no DICOM radiographs")

LOSSLESS = [
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
]


def values_of(source: Dataset) -> NDArray[Any]:
    return decode(source)[0].values


def refusal(source: Dataset) -> Reason:
    with pytest.raises(NotAnalysable) as refused:
        decode(source)
    return refused.value.reason


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
@pytest.mark.parametrize("encoding", ["JPLL", "JLSL", "J2KR", "RLE"])
def test_a_real_lossless_image_has_the_values_of_the_uncompressed_one(sample: str, encoding: str) -> None:
    plain = values_of(dcmread(REAL / f"WG04_{sample}_UNC.dcm"))
    assert np.array_equal(values_of(dcmread(REAL / f"WG04_{sample}_{encoding}.dcm")), plain)


@needs_radiographs
@pytest.mark.parametrize("sample", ["RG2", "RG3"])
def test_a_12_bit_jpeg_with_an_illegal_scan_header_is_close_to_the_original(sample: str) -> None:
    plain = values_of(dcmread(REAL / f"WG04_{sample}_UNC.dcm")).astype(int)
    lossy = values_of(dcmread(REAL / f"WG04_{sample}_JPLY.dcm")).astype(int)
    # Compressed to a thirtieth; on average it is off by less than 1 % of the range.
    assert np.abs(plain - lossy).mean() < 5


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (16, False), (12, True), (16, True)]
)
def test_every_lossless_syntax_keeps_every_value(syntax: Any, bits: int, signed: bool) -> None:
    plain = radiograph(limb(), bits=bits, signed=signed, kind="CR")
    coded = radiograph(limb(), bits=bits, signed=signed, kind="CR", transfer_syntax=syntax)
    assert np.array_equal(values_of(coded), values_of(plain))
    assert values_of(plain).max() > 0


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, HTJ2K], ids=lambda u: u.keyword
)
def test_lossy_syntaxes_come_close(syntax: Any) -> None:
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    plain = values_of(radiograph(limb(), bits=bits)).astype(int)
    lossy = values_of(radiograph(limb(), bits=bits, transfer_syntax=syntax)).astype(int)
    assert np.abs(plain - lossy).mean() < 0.01 * (1 << bits)


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=lambda u: u.keyword
)
def test_colours_keep_their_values(syntax: Any) -> None:
    plain = decode(radiograph(limb(), kind="SC", colour="RGB"))[0]
    coded = decode(radiograph(limb(), kind="SC", colour="RGB", transfer_syntax=syntax))[0]
    assert np.array_equal(coded.values, plain.values)
    assert coded.colours == plain.colours == "RGB"


def test_white_of_16_bits_stays_white_in_htj2k_with_loss() -> None:
    stored = np.full((64, 48), 65_535, np.uint16)
    stored[20:40] = 0
    found = values_of(radiograph(stored, bits=16, kind="CR", transfer_syntax=HTJ2K))
    assert found[:18].min() > 65_000
    assert found[22:38].max() < 500


@pytest.mark.parametrize("signed", [False, True])
def test_white_that_overshoots_in_a_lossy_codestream_stays_white(signed: bool) -> None:
    stored = np.full((64, 48), 1023, np.uint16)
    stored[20:40, 10:30] = 300
    coded = radiograph(stored.astype(np.uint16) * 16, bits=16, kind="CR", transfer_syntax=JPEGLSNearLossless)
    # The codestream keeps 16 bits, of which the header now says ten, as gdcm writes it.
    plain = np.where(stored == 1023, 1025, stored)
    if signed:
        plain = np.where(stored == 1023, 513, -300)

    if signed:
        stream = jpeg2k_encode(plain.astype(np.int16), codecformat="J2K", reversible=True)
        coded.file_meta.TransferSyntaxUID = JPEG2000
    else:
        stream = jpegls_encode(plain.astype(np.uint16))
    coded["PixelData"].value = encapsulate([bytes(stream)])
    coded.BitsStored, coded.HighBit, coded.PixelRepresentation = 10, 9, int(signed)
    found = values_of(coded)
    assert found[0, 0] == (511 if signed else 1023)
    assert found[30, 20] == (1024 - 300 if signed else 300)


def test_8_bit_pixels_in_big_endian_words_are_turned_round_and_in_bytes_are_not() -> None:
    stored = np.arange(15, dtype=np.uint8).reshape(3, 5)
    source = dataset(stored)
    source.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    source["PixelData"].value = stored.tobytes() + b"\0"
    assert np.array_equal(values_of(source), stored)
    source["PixelData"].value = np.frombuffer(stored.tobytes() + b"\0", "<u2").byteswap().tobytes()
    source["PixelData"].VR = "OW"
    assert np.array_equal(values_of(source), stored)


@pytest.mark.parametrize("marker", [b"", b"\xff\xee\x00\x0cAdobe\0\1\2\3\4"], ids=["no marker", "a short Adobe marker"])
def test_a_jpeg_that_does_not_say_its_colours_has_those_of_the_header(marker: bytes) -> None:

    colours = np.zeros((16, 16, 3), np.uint8)
    colours[..., 0] = 200
    stream = bytes(jpeg8_encode(colours, colorspace="RGB", outcolorspace="RGB", subsampling="444"))
    at = stream.index(b"\xff\xdb")
    source = radiograph(limb(16, 16), kind="SC", colour="RGB", transfer_syntax=JPEGLSLossless)
    source.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    source["PixelData"].value = encapsulate([b"\xff\xd8" + marker + stream[at:]])
    found = decode(source)[0]
    assert found.colours == "RGB"
    assert np.abs(found.values[8, 8].astype(int) - [200, 0, 0]).max() < 4


def test_a_jpeg_of_shared_chroma_is_no_rgb_whatever_its_header_says() -> None:

    colours = np.repeat(limb(32, 32)[..., None], 3, axis=2)
    stream = bytes(jpeg8_encode(colours, subsampling="420"))
    source = radiograph(limb(32, 32), kind="SC", colour="RGB", transfer_syntax=JPEGLSLossless)
    source.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    source["PixelData"].value = encapsulate([b"\xff\xd8" + stream[stream.index(b"\xff\xdb") :]])
    found = decode(source)[0].values
    assert np.abs(found.astype(int) - colours).mean() < 6


def test_shared_chroma_is_spread_over_its_pair() -> None:
    source = dataset(np.zeros((1, 4, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422")
    source["PixelData"] = pixel_data(np.array([10, 20, 100, 200, 30, 40, 110, 210], np.uint8))
    assert values_of(source)[0].tolist() == [[10, 100, 200], [20, 100, 200], [30, 110, 210], [40, 110, 210]]


def test_colour_by_plane_and_colour_by_pixel_are_the_same() -> None:
    colours = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    planes = dataset(colours, PlanarConfiguration=1)
    planes["PixelData"] = pixel_data(np.ascontiguousarray(np.moveaxis(colours, -1, 0)))
    assert np.array_equal(values_of(planes), colours)


@given(st.integers(0, 2**16 - 1), st.integers(1, 16), st.booleans())
def test_what_lies_outside_bits_stored_is_dropped(value: int, bits: int, in_upper_bits: bool) -> None:
    high_bit = 15 if in_upper_bits else bits - 1
    source = dataset(np.array([[value, 0]], np.uint16), BitsStored=bits, HighBit=high_bit)
    assert values_of(source)[0, 0] == (value >> (high_bit + 1 - bits)) & ((1 << bits) - 1)


def test_big_endian_is_read_too() -> None:
    source = dataset(np.array([[1, 256]], ">u2"))
    source.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert values_of(source)[0].tolist() == [1, 256]


def test_one_byte_of_padding_is_allowed_and_two_are_not() -> None:
    odd = np.arange(15, dtype=np.uint8).reshape(3, 5)
    source = dataset(odd)
    source["PixelData"].value = odd.tobytes() + b"\0"
    assert np.array_equal(values_of(source), odd)
    source["PixelData"].value = odd.tobytes() + b"\0\0\0"
    assert refusal(source) is Reason.SIZE_MISMATCH


def test_an_image_without_pixels_says_so() -> None:
    assert refusal(dataset(limb(), PixelData=None)) is Reason.NO_PIXELS
    empty = dataset(limb())
    empty["PixelData"].value = b""
    assert refusal(empty) is Reason.NO_PIXELS


def test_several_frames_are_refused() -> None:
    assert refusal(dataset(limb(), NumberOfFrames=2)) is Reason.MULTI_FRAME


def test_a_claim_of_too_many_pixels_is_refused_before_anything_is_decoded() -> None:
    assert refusal(dataset(limb(), Rows=65_535, Columns=65_535)) is Reason.TOO_LARGE


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_missing_dimensions_do_not_match_the_pixels(name: str) -> None:
    assert refusal(dataset(limb(), **{name: None})) is Reason.SIZE_MISMATCH


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda uid: uid.keyword)
def test_wrong_rows_are_found_whatever_the_encoding(syntax: Any) -> None:
    source = radiograph(limb(), bits=8 if syntax == JPEGBaseline8Bit else 12, transfer_syntax=syntax)
    source.Rows -= 1
    assert refusal(source) is Reason.SIZE_MISMATCH


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_truncated_pixel_data_are_never_read(syntax: Any, kept: float) -> None:
    source = radiograph(limb(), transfer_syntax=syntax)
    data = source.PixelData
    source["PixelData"].value = data[: int(len(data) * kept) // 2 * 2]
    assert refusal(source) in (Reason.UNDECODABLE, Reason.SIZE_MISMATCH)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PhotometricInterpretation": "CMYK"},
        {"PhotometricInterpretation": None},
        {"BitsAllocated": 32},
        {"BitsAllocated": None},
        {"BitsStored": 17},
        {"BitsStored": 12, "HighBit": 16},
        {"BitsStored": 12, "HighBit": 10},
        {"SamplesPerPixel": 3},
        {"PixelRepresentation": None},
    ],
)
def test_pixels_described_wrongly_are_unsupported(attributes: dict[str, Any]) -> None:
    assert refusal(dataset(limb(dtype=np.uint16), **attributes)) is Reason.UNSUPPORTED_PIXELS


def test_a_dataset_without_a_transfer_syntax_is_undecodable() -> None:
    source = dataset(limb())
    del source.file_meta.TransferSyntaxUID
    assert refusal(source) is Reason.UNDECODABLE


def test_a_codestream_of_more_bits_than_are_allocated_is_unsupported() -> None:
    source = radiograph(limb(), bits=12, transfer_syntax=JPEGLosslessSV1)
    source.BitsAllocated = source.BitsStored = 8
    source.HighBit = 7
    assert refusal(source) is Reason.UNSUPPORTED_PIXELS
