"""A codestream's claim is read from its first markers, and what DICOM does not allow has none."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from dicom_node.image.codestream import MAX_TILES, Claim, Family, Unreadable, read_claim
from tests.phantom import limb

GREY12 = limb(40, 30, highest=4095, dtype=np.uint16)
COLOUR = np.repeat(limb(40, 30)[..., None], 3, axis=2)

STREAMS = {
    "baseline": (imagecodecs.jpeg8_encode(limb(40, 30)), Family.JPEG, 1, 8),
    "baseline, colour": (imagecodecs.jpeg8_encode(COLOUR), Family.JPEG, 3, 8),
    "extended": (imagecodecs.jpeg8_encode(GREY12, bitspersample=12), Family.JPEG, 1, 12),
    "lossless": (imagecodecs.jpeg8_encode(GREY12, lossless=True, bitspersample=12), Family.JPEG, 1, 12),
    "JPEG-LS": (imagecodecs.jpegls_encode(GREY12), Family.JPEG_LS, 1, 12),
    "JPEG 2000": (imagecodecs.jpeg2k_encode(GREY12, codecformat="J2K", reversible=True), Family.JPEG_2000, 1, 16),
    "JP2 file": (imagecodecs.jpeg2k_encode(GREY12, codecformat="JP2", reversible=True), Family.JPEG_2000, 1, 16),
    "HTJ2K": (imagecodecs.htj2k_encode(GREY12, reversible=True), Family.JPEG_2000, 1, 16),
}


def siz(
    columns: int, rows: int, *, tile: tuple[int, int] = (10**6, 10**6), sampling: bytes = b"\1\1", claimed: int = 1
) -> bytes:
    """SOC and SIZ of a JPEG 2000 codestream that holds nothing else."""
    numbers = (columns, rows, 0, 0, *tile, 0, 0)
    fields = b"\0\0" + b"".join(number.to_bytes(4, "big") for number in numbers) + claimed.to_bytes(2, "big")
    segment = fields + (b"\x0f" + sampling)
    return b"\xff\x4f\xff\x51" + (len(segment) + 2).to_bytes(2, "big") + segment + b"\0" * 8 + b"\xff\xd9"


@pytest.mark.parametrize("name", STREAMS)
def test_size_components_and_precision_are_those_of_the_encoded_image(name: str) -> None:
    stream, family, components, precision = STREAMS[name]
    claim = read_claim(bytes(stream))
    assert claim[:4] == (family, 40, 30, components)
    assert claim.precision in (precision, 16 if family is Family.JPEG_LS else precision)


def test_a_lossless_jpeg_and_one_with_stated_colours_say_so() -> None:
    assert read_claim(bytes(STREAMS["lossless"][0])).lossless_jpeg
    assert not read_claim(bytes(STREAMS["baseline"][0])).lossless_jpeg
    assert read_claim(bytes(STREAMS["baseline, colour"][0])).stated_colours


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\0\0\xff"])
def test_padding_behind_the_end_is_allowed(padding: bytes) -> None:
    assert read_claim(bytes(STREAMS["JPEG-LS"][0]) + padding).rows == 40


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_codestream_without_its_end_is_unreadable(name: str, kept: float) -> None:
    stream = bytes(STREAMS[name][0])
    with pytest.raises(Unreadable):
        read_claim(stream[: int(len(stream) * kept)])


def test_a_progressive_jpeg_is_unreadable_however_many_scans_it_has() -> None:
    stream = bytearray(STREAMS["baseline"][0])
    stream[stream.index(b"\xff\xc0") + 1] = 0xC2
    with pytest.raises(Unreadable, match="coding process"):
        read_claim(bytes(stream))


def test_a_huge_claim_is_read_and_not_believed_here() -> None:
    assert read_claim(siz(2**31, 2**31 - 1, tile=(2**31, 2**31))) == Claim(Family.JPEG_2000, 2**31 - 1, 2**31, 1, 16)


def test_more_tiles_than_any_radiograph_has_are_unreadable() -> None:
    side = int(MAX_TILES**0.5)
    assert read_claim(siz(side, side, tile=(1, 1))).rows == side
    with pytest.raises(Unreadable, match="tiles"):
        read_claim(siz(side + 1, side, tile=(1, 1)))


@pytest.mark.parametrize(
    "stream",
    [
        siz(9, 9, sampling=b"\2\1"),
        siz(9, 9, tile=(0, 9)),
        siz(0, 9),
        siz(9, 9, claimed=2),
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9 + b"\xff\xd9",
        b"junk" * 9 + b"\xff\xd9",
        b"\xff\x4f\xff\x51\xff\xd9",
    ],
)
def test_what_no_encoder_writes_is_unreadable(stream: bytes) -> None:
    with pytest.raises(Unreadable):
        read_claim(stream)
