"""What the bytes tell of the pixels, checked against what decoding tells."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.pixels import source_pixels_digest
from dicom_node.raw_pixels import PIECE, RawPixels, raw_pixels
from tests.radiographs import radiograph


def picture(seed: int = 1, side: int = 61) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def written(dataset: FileDataset) -> io.BytesIO:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer


def raw(dataset: FileDataset) -> RawPixels:
    found = raw_pixels(written(dataset))
    assert found is not None
    return found


def image(syntax: UID = ExplicitVRLittleEndian, seed: int = 1, **changes: object) -> FileDataset:
    return radiograph(picture(seed), transfer_syntax=syntax, sop_instance_uid="1.2.3", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_another_header_over_the_same_bytes_is_seen_to_have_the_same_pixels(syntax: UID) -> None:
    other = image(syntax, attributes={"PatientName": "Roe^Jane", "StudyDescription": "x" * 60, "WindowCenter": 7})
    assert raw(image(syntax)).same_as(raw(other)) is True


def test_implicit_and_explicit_have_the_same_pixels() -> None:
    assert raw(image(ExplicitVRLittleEndian)).same_as(raw(image(ImplicitVRLittleEndian))) is True


def test_other_uncompressed_pixels_are_seen_to_be_others() -> None:
    assert raw(image()).same_as(raw(image(seed=2))) is False
    changed = image()
    changed.PixelData = bytes([changed.PixelData[0] ^ 1]) + changed.PixelData[1:]
    assert raw(image()).same_as(raw(changed)) is False


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_of_other_compressed_bytes_only_decoding_can_tell(syntax: UID) -> None:
    assert raw(image(syntax)).same_as(raw(image(syntax, seed=2))) is None


@pytest.mark.parametrize(
    "attributes",
    [{"PhotometricInterpretation": "MONOCHROME1"}, {"BitsStored": 11}, {"PixelRepresentation": 1}, {"Rows": 60}],
)
def test_the_same_bytes_that_are_to_be_read_otherwise_are_not_taken_for_the_same_pixels(
    attributes: dict[str, object],
) -> None:
    assert raw(image()).same_as(raw(image(attributes=attributes))) is None


def test_however_a_frame_is_cut_into_fragments_it_is_the_same() -> None:
    cut = image(JPEG2000Lossless)
    (frame,) = generate_frames(cut.PixelData, number_of_frames=1)
    cut.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)
    assert raw(image(JPEG2000Lossless)).same_as(raw(cut)) is True


def test_what_lies_outside_bits_stored_does_not_count() -> None:
    dirty = image()
    values = np.frombuffer(dirty.PixelData, dtype="<u2") | 0x8000
    dirty.PixelData = values.tobytes()
    assert source_pixels_digest(dirty) == source_pixels_digest(image())
    assert raw(image()).same_as(raw(dirty)) is True


def test_the_byte_that_fills_an_odd_length_up_does_not_count() -> None:
    one, other = (image(bits=8, allocated=8) for _ in range(2))
    assert len(one.PixelData) == 61 * 61 + 1
    other.PixelData = other.PixelData[:-1] + b"\x07"
    assert raw(one).same_as(raw(other)) is True


def test_pixels_of_several_pieces_are_compared_to_their_end() -> None:
    large = radiograph(picture(side=1100), sop_instance_uid="1.2.3")
    other = radiograph(picture(side=1100), sop_instance_uid="1.2.3")
    assert len(large.PixelData) > 2 * PIECE
    assert raw(large).same_as(raw(other)) is True
    other.PixelData = other.PixelData[:-2] + bytes([other.PixelData[-2] ^ 1, other.PixelData[-1]])
    assert raw(large).same_as(raw(other)) is False


def test_two_objects_without_pixels_have_the_same_and_one_alone_has_not() -> None:
    bare, renamed = (image(omit=["PixelData"], attributes={"PatientName": name}) for name in ("A", "B"))
    assert raw(bare).same_as(raw(renamed)) is True
    assert raw(bare).same_as(raw(image())) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-100],
        lambda content: content[:200],
        lambda _: b"Planted^Name" * 100,
        lambda _: b"",
    ],
    ids=["cut off in the pixels", "cut off in the header", "garbage", "nothing"],
)
def test_what_is_cut_off_or_no_dicom_is_left_to_others(spoil: Callable[[bytes], bytes]) -> None:
    found = raw_pixels(io.BytesIO(spoil(written(image()).getvalue())))
    assert found is None or not found.whole


def test_a_deflated_data_set_is_not_unpacked() -> None:
    assert raw_pixels(written(image(DeflatedExplicitVRLittleEndian))) is None


def test_a_disk_that_fails_says_nothing_of_the_file() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 600:
                raise OSError(5, "input/output error")
            return super().read(size)

    content = written(radiograph(picture(side=400))).getvalue()
    with pytest.raises(OSError, match="input/output"):
        raw_pixels(Failing(content))


def test_of_real_radiographs_in_any_encoding_no_two_are_judged_otherwise_than_by_decoding(test_data: Path) -> None:
    found = {}
    for path in sorted((test_data / "dicom").glob("*.dcm")):
        with path.open("rb") as file:
            found[path.name] = (raw_pixels(file), source_pixels_digest(pydicom.dcmread(path)))
    assert len(found) == 12
    for (one, digest), (other, other_digest) in itertools.combinations(found.values(), 2):
        assert one is not None
        assert other is not None
        assert one.same_as(one) is True
        if (verdict := one.same_as(other)) is not None:
            assert verdict == (digest == other_digest)
