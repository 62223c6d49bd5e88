"""Encode the pixels of an image in any transfer syntax that a modality may send (PS3.5, Annex A).

For what Osteon makes itself, and for tests of what it reads. The encoders are those of `imagecodecs`, which is loaded
when first needed: it costs start-up time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K as HTJ2KLossy
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
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

Raw = NDArray[np.uint8] | NDArray[np.uint16]
Values = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int8] | NDArray[np.int16]

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
"""Transfer syntaxes whose pixels are not compressed on their own."""


class EncodeError(ValueError):
    """The transfer syntax cannot hold these pixels; the message says why."""


@dataclass(frozen=True)
class Effort:
    """How much an encoder with loss may lose, and which predictor one without it uses.

    Attributes
    ----------
    quality
        JPEG Baseline and Extended: 1 to 100.
    near
        JPEG-LS near-lossless: the greatest difference of a stored value, 1 or more.
    psnr
        JPEG 2000: peak signal-to-noise ratio in dB.
    step
        HTJ2K: quantisation step as a share of the full range.
    predictor
        JPEG Lossless, Process 14: 1 to 7 (ITU-T T.81, table H.1). Its SV1 is always predictor 1.
    """

    quality: int = 95
    near: int = 2
    psnr: int = 70
    step: float = 1e-4
    predictor: int = 4


def encode(dataset: Dataset, transfer_syntax: UID, effort: Effort | None = None) -> None:
    """Turn the uncompressed pixels of `dataset` into `transfer_syntax`, in place, with the header that goes with it.

    One fragment per frame. What loses something says so: Lossy Image Compression, its ratio and method are added to
    what was lost before. JPEG-LS is written with the precision of Bits Allocated, all else with that of Bits Stored.

    Parameters
    ----------
    dataset
        An image with `file_meta` in a transfer syntax of `NATIVE`: MONOCHROME, PALETTE COLOR, RGB, YBR_FULL or
        YBR_FULL_422, of 8 or 16 bits allocated.

    Raises
    ------
    EncodeError
        If the pixels are compressed already, or the transfer syntax is unknown or cannot hold them.
    """
    if dataset.file_meta.TransferSyntaxUID not in NATIVE:
        raise EncodeError("the pixels are compressed already")
    if transfer_syntax not in NATIVE:
        codec = _CODECS.get(transfer_syntax)
        if codec is None:
            raise EncodeError(f"no encoder for {UID(transfer_syntax).name}")
        _compress(dataset, codec, effort or Effort())
    dataset.file_meta.TransferSyntaxUID = transfer_syntax


def pixel_bytes(stored: Values | NDArray[np.integer], *, bits_allocated: int, subsampled: bool = False) -> bytes:
    """Return native Pixel Data (PS3.5, 8.2) without its padding.

    `stored` has the shape (frames, rows, columns) or (frames, rows, columns, 3); two pixels next to each other share
    the chroma of the first where `subsampled`, as YBR_FULL_422 wants (PS3.3, C.7.6.3.1.2).
    """
    raw = stored.astype(f"<u{bits_allocated // 8}", casting="unsafe")
    if not subsampled:
        return raw.tobytes()
    if raw.shape[2] % 2:
        raise EncodeError("YBR_FULL_422 needs an even number of columns")
    first, second = raw[:, :, ::2], raw[:, :, 1::2, :1]
    return np.concatenate([first[..., :1], second, first[..., 1:]], axis=3).tobytes()


# --- the pixels, as encoders want them --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame: raw is (rows, columns) or (rows, columns, 3), the bits of the stored values and nothing above."""

    raw: Raw
    bits: int
    signed: bool
    photometric: str

    @property
    def grey(self) -> bool:
        return self.raw.ndim == 2

    def narrow(self) -> Raw:
        """Bits Stored, in bytes where they fit: some encoders take more from the type than they should."""
        return self.raw if self.bits > 8 else self.raw.astype(np.uint8)

    def values(self) -> Values:
        """Numbers with their sign, in as few bytes as hold them."""
        narrow = self.narrow()
        return _with_sign(narrow, self.bits) if self.signed else narrow

    def extended(self) -> Raw:
        """All of Bits Allocated, with the sign in what lies above Bits Stored."""
        return _with_sign(self.raw, self.bits).view(self.raw.dtype) if self.signed else self.raw


def _with_sign(raw: Raw, bits: int) -> Values:
    sign = 1 << (bits - 1)
    return ((raw.astype(np.int32) ^ sign) - sign).astype(f"i{raw.itemsize}")


def _frames(dataset: Dataset) -> list[_Frame]:
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    photometric = str(dataset.PhotometricInterpretation)
    if allocated not in (8, 16):
        raise EncodeError("only 8 and 16 bits allocated can be encoded")
    number = int(dataset.get("NumberOfFrames") or 1)
    data: Raw = np.frombuffer(dataset.PixelData, dtype="<u1" if allocated == 8 else "<u2")
    if photometric == "YBR_FULL_422":
        photometric = "YBR_FULL"
        raw: Raw = _full(data[: number * rows * columns * 2], (number, rows, columns))
    else:
        raw = data[: number * rows * columns * samples]
        if samples == 1:
            raw = raw.reshape(number, rows, columns)
        elif int(dataset.get("PlanarConfiguration") or 0):
            raw = raw.reshape(number, samples, rows, columns).transpose(0, 2, 3, 1)
        else:
            raw = raw.reshape(number, rows, columns, samples)
    masked: Raw = (raw & raw.dtype.type((1 << bits) - 1)).astype(f"u{allocated // 8}")
    signed = int(dataset.PixelRepresentation) == 1
    return [_Frame(np.ascontiguousarray(frame), bits, signed, photometric) for frame in masked]


def _full(data: Raw, shape: tuple[int, int, int]) -> Raw:
    """Y1 Y2 Cb Cr of YBR_FULL_422 to Y Cb Cr of each pixel."""
    number, rows, columns = shape
    pairs = data.reshape(number, rows, columns // 2, 4)
    full: Raw = np.empty((*shape, 3), dtype=data.dtype)
    full[..., 0] = pairs[..., :2].reshape(shape)
    full[..., 1:] = pairs[..., 2:].repeat(2, axis=2)
    return full


# --- what each transfer syntax is -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Codec:
    encode: Callable[[_Frame, Effort], bytes]
    lossy_method: str = ""  # PS3.3, C.7.6.1.1.5.1
    colour_of_rgb: str = "RGB"  # the Photometric Interpretation that RGB and full YBR become
    colour_of_ybr: str = "YBR_FULL"
    planar: int = 0


def _compress(dataset: Dataset, codec: _Codec, effort: Effort) -> None:
    frames = _frames(dataset)
    if codec.lossy_method and dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise EncodeError("numbers of colours cannot be compressed with loss")
    encoded = [codec.encode(frame, effort) for frame in frames]
    if not frames[0].grey:
        rgb = frames[0].photometric == "RGB"
        dataset.PhotometricInterpretation = codec.colour_of_rgb if rgb else codec.colour_of_ybr
        dataset.PlanarConfiguration = codec.planar
    if codec.lossy_method:
        before, after = sum(frame.raw.nbytes for frame in frames), sum(map(len, encoded))
        _note_loss(dataset, codec.lossy_method, round(before / after, 2))
    dataset.add_new("PixelData", "OB", encapsulate(encoded))
    dataset["PixelData"].is_undefined_length = True


def _note_loss(dataset: Dataset, method: str, ratio: float) -> None:
    """Every step that lost something is kept, in its order (PS3.3, C.7.6.1.1.5)."""
    ratios, methods = (
        _values(dataset, keyword) for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    )
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = [*ratios, ratio]
    dataset.LossyImageCompressionMethod = [*methods, method]


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | float | int) else list(value)


def _jpeg(frame: _Frame, effort: Effort, *, bits: tuple[int, ...]) -> bytes:
    import imagecodecs

    if frame.bits not in bits or frame.raw.itemsize != (1 if frame.bits == 8 else 2):
        raise EncodeError(f"JPEG with loss takes {' or '.join(map(str, bits))} bits here, in as few bytes as hold them")
    _refuse_sign(frame)
    if frame.grey:
        return bytes(imagecodecs.jpeg8_encode(frame.raw, level=effort.quality, bitspersample=frame.bits))
    colours = "RGB" if frame.photometric == "RGB" else "YCBCR"
    return bytes(
        imagecodecs.jpeg8_encode(
            frame.raw, level=effort.quality, colorspace=colours, outcolorspace="YCBCR", subsampling="422"
        )
    )


def _jpeg_baseline(frame: _Frame, effort: Effort) -> bytes:
    return _jpeg(frame, effort, bits=(8,))


def _jpeg_extended(frame: _Frame, effort: Effort) -> bytes:
    # Processes 2 and 4 know 8 and 12 bits. 10 in a codestream of 12 could come back above what Bits Stored allows.
    return _jpeg(frame, effort, bits=(8, 12))


def _jpeg_lossless(frame: _Frame, effort: Effort) -> bytes:
    import imagecodecs

    # Neither changes the components. "YCBCR" would be right for YBR, but then the encoder codes chroma with a second
    # Huffman table and names the first one in the scan's header, so that nobody can decode it (imagecodecs 2026.3.6).
    colours = None if frame.grey else "RGB" if frame.photometric == "RGB" else "UNKNOWN"
    return bytes(
        imagecodecs.jpeg8_encode(
            frame.narrow(),
            lossless=True,
            predictor=effort.predictor,
            bitspersample=frame.bits,
            colorspace=colours,
            outcolorspace=colours,
        )
    )


def _jpeg_lossless_sv1(frame: _Frame, _: Effort) -> bytes:
    return _jpeg_lossless(frame, Effort(predictor=1))


def _jpeg_ls(frame: _Frame, _: Effort) -> bytes:
    import imagecodecs

    # Readers look for the sign in the codestream's highest bit, and its precision is Bits Allocated.
    return bytes(imagecodecs.jpegls_encode(frame.extended(), level=0))


def _jpeg_ls_near(frame: _Frame, effort: Effort) -> bytes:
    import imagecodecs

    _refuse_sign(frame)
    # The codestream's precision is Bits Allocated: near the top, what comes back could exceed Bits Stored and wrap.
    highest = (1 << frame.bits) - 1 - (effort.near if frame.bits < 8 * frame.raw.itemsize else 0)
    return bytes(imagecodecs.jpegls_encode(np.minimum(frame.raw, frame.raw.dtype.type(highest)), level=effort.near))


def _jpeg_2000_lossless(frame: _Frame, _: Effort) -> bytes:
    return _jpeg_2000(frame, reversible=True, psnr=0)


def _jpeg_2000_lossy(frame: _Frame, effort: Effort) -> bytes:
    return _jpeg_2000(frame, reversible=False, psnr=effort.psnr)


def _jpeg_2000(frame: _Frame, *, reversible: bool, psnr: int) -> bytes:
    import imagecodecs

    return bytes(
        imagecodecs.jpeg2k_encode(
            frame.values(),
            level=psnr,
            codecformat="J2K",  # PS3.5, A.4.4: the codestream alone, no JP2 header
            reversible=reversible,
            bitspersample=frame.bits,
            mct=frame.photometric == "RGB",
        )
    )


def _htj2k_lossless(frame: _Frame, _: Effort) -> bytes:
    import imagecodecs

    # Signed numbers have no level shift, which the encoder would take from 8 or 16 bits instead of Bits Stored.
    middle = 0 if frame.signed else 1 << (frame.bits - 1)
    values = frame.values()
    centred = (values.astype(np.int32) - middle).astype(f"i{values.itemsize}")
    code = imagecodecs.htj2k_encode(
        centred,
        reversible=True,
        rgb=frame.photometric == "RGB",
        tlm=True,
        resolutions=_decompositions(frame.raw.shape[:2]),
    )
    return _with_precision(bytes(code), frame)


def _htj2k_lossy(frame: _Frame, effort: Effort) -> bytes:
    import imagecodecs

    # Quantisation is relative to the full range, which for the encoder is that of 8 or 16 bits.
    values = frame.values()
    raised = values << (8 * values.itemsize - frame.bits)
    code = imagecodecs.htj2k_encode(
        raised, reversible=False, level=effort.step, rgb=frame.photometric == "RGB", tlm=True
    )
    return _with_precision(bytes(code), frame)


def _decompositions(shape: tuple[int, ...]) -> int:
    """HTJ2K Lossless RPCL: the smallest resolution has a side of at most 64 (PS3.5, 10.18)."""
    return max(5, (max(shape) - 1).bit_length() - 6)


def _with_precision(code: bytes, frame: _Frame) -> bytes:
    """State Bits Stored and the sign in SIZ (ISO/IEC 15444-1, A.5.1); the encoder knows only 8 and 16 bits."""
    changed = bytearray(code)
    siz = code.index(b"\xff\x51")
    for component in range(int.from_bytes(code[siz + 38 : siz + 40], "big")):
        changed[siz + 40 + 3 * component] = frame.bits - 1 | (0x80 if frame.signed else 0)
    return bytes(changed)


def _rle(frame: _Frame, _: Effort) -> bytes:
    """PS3.5, Annex G: a segment for each byte of each sample, the most significant first; no run leaves its row."""
    import imagecodecs

    raw = frame.extended()
    planes = [raw] if frame.grey else [raw[..., sample] for sample in range(3)]
    segments = []
    for plane in planes:
        for shift in range(8 * (plane.itemsize - 1), -1, -8):
            segment = bytes(imagecodecs.packbits_encode(np.ascontiguousarray(plane >> shift).astype(np.uint8)))
            segments.append(segment + b"\0" * (len(segment) % 2))
    starts = 64 + np.cumsum([0, *map(len, segments[:-1])])
    header = np.zeros(16, dtype="<u4")
    header[: 1 + len(segments)] = [len(segments), *starts]
    return header.tobytes() + b"".join(segments)


def _refuse_sign(frame: _Frame) -> None:
    if frame.signed:
        raise EncodeError("this encoder would lose the sign with the rest")


_CODECS: dict[UID, _Codec] = {
    RLELossless: _Codec(_rle, planar=1),
    JPEGBaseline8Bit: _Codec(_jpeg_baseline, "ISO_10918_1", "YBR_FULL_422", "YBR_FULL_422"),
    JPEGExtended12Bit: _Codec(_jpeg_extended, "ISO_10918_1", "YBR_FULL_422", "YBR_FULL_422"),
    JPEGLossless: _Codec(_jpeg_lossless),
    JPEGLosslessSV1: _Codec(_jpeg_lossless_sv1),
    JPEGLSLossless: _Codec(_jpeg_ls),
    JPEGLSNearLossless: _Codec(_jpeg_ls_near, "ISO_14495_1"),
    JPEG2000Lossless: _Codec(_jpeg_2000_lossless, colour_of_rgb="YBR_RCT"),
    JPEG2000: _Codec(_jpeg_2000_lossy, "ISO_15444_1", "YBR_ICT"),
    HTJ2KLossless: _Codec(_htj2k_lossless, colour_of_rgb="YBR_RCT"),
    HTJ2KLosslessRPCL: _Codec(_htj2k_lossless, colour_of_rgb="YBR_RCT"),
    HTJ2KLossy: _Codec(_htj2k_lossy, "ISO_15444_15", "YBR_ICT"),
}

COMPRESSED: tuple[UID, ...] = tuple(_CODECS)
"""Every compressed transfer syntax that `encode` writes."""

LOSSY: tuple[UID, ...] = tuple(syntax for syntax, codec in _CODECS.items() if codec.lossy_method)
"""Those of them that lose something."""
