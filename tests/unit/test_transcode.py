"""An object in another transfer syntax is the same object: every attribute, every pixel, the same UID."""

from __future__ import annotations

import contextlib
import io
from copy import deepcopy

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.objects.encode import encode, pixel_bytes
from dicom_node.objects.report import build_report
from dicom_node.transcode import PLAIN, CannotTranscode, transcode
from tests.post import data_set
from tests.radiographs import radiograph
from tests.reports import variants

LOSSLESS = [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless]


def written(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(content: bytes) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(content))


def picture(shape: tuple[int, int] = (31, 46)) -> np.ndarray:  # type: ignore[type-arg]
    coarse = np.random.default_rng(1).integers(0, 256, (4, 4), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 12), dtype=np.uint8))[: shape[0], : shape[1]]


def coloured(colour: str, syntax: UID) -> FileDataset:
    """A picture whose every colour has another value."""
    dataset = radiograph(picture((32, 46)), kind="SC", colour=colour)  # type: ignore[arg-type]
    values = np.stack([picture((32, 46)), 255 - picture((32, 46)) // 2, np.full((32, 46), 90, np.uint8)], axis=-1)
    dataset.PixelData = pixel_bytes(values[np.newaxis], bits_allocated=8, subsampled=colour.endswith("422"))
    encode(dataset, syntax)
    return dataset


@pytest.mark.parametrize("name", ["mixed", "two views, both with a region", "bare", "superseding", "name: japanese"])
def test_a_report_in_implicit_vr_says_the_same_attribute_by_attribute(name: str) -> None:
    stored = build_report(variants()[name])
    sent = transcode(stored, ImplicitVRLittleEndian)
    assert read(sent).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert read(sent).file_meta.MediaStorageSOPInstanceUID == read(stored).SOPInstanceUID
    # Iterated, so that every item of every sequence is decoded.
    assert [*read(sent).iterall()] == [*read(stored).iterall()]
    assert data_set(transcode(sent, ExplicitVRLittleEndian)) == data_set(stored)


def test_what_was_deflated_is_inflated() -> None:
    dataset = radiograph(picture())
    plain = written(dataset)
    encode(dataset, DeflatedExplicitVRLittleEndian)
    assert data_set(transcode(written(dataset), ExplicitVRLittleEndian)) == data_set(plain)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(
    "image",
    [{}, {"bits": 12}, {"bits": 12, "signed": True, "kind": "CR"}, {"bits": 8, "allocated": 8}, {"monochrome1": True}],
    ids=["default", "12 bits", "12 bits with a sign", "8 bits", "inverted"],
)
@pytest.mark.parametrize("to", PLAIN, ids=lambda syntax: syntax.keyword)
def test_grey_pixels_compressed_without_loss_come_out_as_they_were(
    syntax: UID, image: dict[str, object], to: UID
) -> None:
    plain = radiograph(picture(), **image)  # type: ignore[arg-type]
    compressed = deepcopy(plain)
    encode(compressed, syntax)
    sent = read(transcode(written(compressed), to))
    assert sent.file_meta.TransferSyntaxUID == to
    assert sent == read(transcode(written(plain), to))
    assert sent.PixelData == plain.PixelData


@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGBaseline8Bit, JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_colours_come_out_as_another_decoder_sees_them_and_the_header_says_how_they_lie(
    colour: str, syntax: UID
) -> None:
    content = written(coloured(colour, syntax))
    sent = read(transcode(content, ExplicitVRLittleEndian))
    assert sent.PhotometricInterpretation in ("RGB", "YBR_FULL")
    assert (sent.SamplesPerPixel, sent.PlanarConfiguration) == (3, 0)
    assert len(sent.PixelData) == 32 * 46 * 3
    assert sent["PixelData"].VR == "OB"
    expected = pixel_array(read(content), decoding_plugin="" if syntax == RLELossless else "gdcm").astype(int)
    difference = np.abs(pixel_array(sent).astype(int) - expected)
    assert difference.max() <= (3 if syntax == JPEGBaseline8Bit else 1), "rounding of the colour transformation"


def test_what_was_lost_before_is_still_said_to_be_lost() -> None:
    compressed = coloured("RGB", JPEGBaseline8Bit)
    sent = read(transcode(written(compressed), ImplicitVRLittleEndian))
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        assert sent[keyword].value == compressed[keyword].value
    assert sent["PixelData"].VR == "OW"
    assert sent.SOPInstanceUID == compressed.SOPInstanceUID


def test_an_odd_number_of_bytes_is_padded() -> None:
    compressed = radiograph(picture((31, 45)), bits=8, allocated=8, transfer_syntax=RLELossless)
    assert len(read(transcode(written(compressed), ExplicitVRLittleEndian)).PixelData) == 31 * 45 + 1


def test_what_cannot_be_written_otherwise_is_refused_without_a_word_of_what_is_in_it() -> None:
    good = written(radiograph(picture(), patient_name="Planted^Name", transfer_syntax=JPEG2000Lossless))
    frames = written(radiograph(picture(), frames=2, transfer_syntax=RLELossless))
    broken = good.replace(b"\xff\x4f\xff\x51", bytes(4))  # the beginning of the codestream
    for content, to in [
        (good, JPEG2000Lossless),
        (frames, ExplicitVRLittleEndian),
        (broken, ExplicitVRLittleEndian),
        (b"no DICOM", ExplicitVRLittleEndian),
        (b"", ImplicitVRLittleEndian),
    ]:
        with pytest.raises(CannotTranscode) as error:
            transcode(content, to)
        assert "Planted" not in str(error.value)
        assert error.value.__cause__ is None


@given(cut=st.integers(0, 3000), flip=st.integers(0, 255))
def test_whatever_the_file_holds_nothing_but_a_refusal_comes_out(cut: int, flip: int) -> None:
    content = bytearray(BASELINE[: len(BASELINE) - cut])
    if content:
        content[(flip * 37) % len(content)] ^= flip
    with contextlib.suppress(CannotTranscode):
        transcode(bytes(content), ImplicitVRLittleEndian)


BASELINE = written(coloured("RGB", JPEGBaseline8Bit))
