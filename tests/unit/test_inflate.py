"""Deflated data sets: the header of a bomb is found in bounded memory, and what unpacks beyond a limit is known."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicom_node.headers import HeaderError, read_header, read_header_file
from dicom_node.inflate import HEADER_LIMIT, TooLarge, beginning, check_inflated_size
from dicom_node.wrap import wrap_picture

MEBI = 1024 * 1024
UNPACKED = 96 * MEBI


def radiograph(transfer_syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    dataset = wrap_picture(
        Image.linear_gradient("L"),
        patient_id="PID-1",
        patient_name="Doe^Jane",
        study_uid="1.2.3",
        series_uid="1.2.3.3",
        sop_instance_uid="1.2.3.4",
        body_part="WRIST",
    )
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    return dataset


def encoded(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A deflated radiograph whose pixels are 96 MiB of zeros, packed into some hundred kB."""
    dataset = radiograph(DeflatedExplicitVRLittleEndian)
    del dataset.PixelData
    content = encoded(dataset)
    start = 144 + int.from_bytes(content[140:144], "little")
    packing = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    parts = [content[:start], packing.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))]
    parts.append(packing.compress(b"\xe0\x7f\x10\x00OB\x00\x00" + UNPACKED.to_bytes(4, "little")))
    parts += [packing.compress(bytes(MEBI)) for _ in range(UNPACKED // MEBI)]
    return b"".join([*parts, packing.flush()])


def test_the_header_of_a_bomb_is_found_in_bounded_memory(bomb: bytes) -> None:
    assert len(bomb) < MEBI
    tracemalloc.start()
    try:
        found = read_header_file(io.BytesIO(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == read_header(radiograph())
    assert peak < 6 * HEADER_LIMIT < UNPACKED / 2


def test_the_size_of_a_bomb_is_checked_in_bounded_memory_and_only_until_the_limit(bomb: bytes, tmp_path: Path) -> None:
    file = io.BytesIO(bomb)
    path = tmp_path / "bomb.dcm"
    path.write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            check_inflated_size(file, 8 * MEBI)
        check_inflated_size(file, UNPACKED + MEBI)
        with pytest.raises(TooLarge):
            check_inflated_size(path, UNPACKED)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.tell() == 0, "it can be read from its start"
    assert peak < 16 * MEBI


@pytest.mark.parametrize("as_path", [False, True])
def test_the_header_of_a_deflated_file_is_that_of_the_same_file_unpacked(tmp_path: Path, as_path: bool) -> None:
    content = encoded(radiograph(DeflatedExplicitVRLittleEndian))
    path = tmp_path / "deflated.dcm"
    path.write_bytes(content)
    assert read_header_file(path if as_path else io.BytesIO(content)) == read_header(radiograph())


def test_the_beginning_of_a_small_deflated_file_is_the_whole_of_it() -> None:
    content = encoded(radiograph(DeflatedExplicitVRLittleEndian))
    packed = beginning(io.BytesIO(content))
    found, expected = pydicom.dcmread(packed), radiograph()
    assert found.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert found.PixelData == expected.PixelData
    assert read_header(found) == read_header(expected)


@pytest.mark.parametrize(
    "content",
    [
        encoded(radiograph()),
        b"",
        b"no DICOM",
        b"\x00" * 128 + b"DICM",
        b"\x00" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff",
        b"\x01" * 1000,
    ],
    ids=["not deflated", "empty", "short", "a prefix alone", "an endless meta information", "noise"],
)
def test_a_file_that_is_not_deflated_or_is_broken_is_returned_as_it_is_and_at_its_start(content: bytes) -> None:
    file = io.BytesIO(content)
    assert beginning(file) is file
    assert file.tell() == 0
    check_inflated_size(file, 1)
    assert file.tell() == 0


def test_a_deflated_file_that_cannot_be_unpacked_has_no_header() -> None:
    content = encoded(radiograph(DeflatedExplicitVRLittleEndian))
    start = 144 + int.from_bytes(content[140:144], "little")
    with pytest.raises(HeaderError):
        read_header_file(io.BytesIO(content[:start] + b"\xff" * 1000))
