"""An object in another transfer syntax, for a destination that does not take the stored one. Pure: bytes in, bytes out.

Only to what every storage SCP has to take (PS3.5 10.1): explicit and implicit VR little endian. The SOP Instance UID
stays, as it may where nothing is lost (PS3.4 B.4.1.3 on the same instance in another encoding): pixels are those that
the compressed ones stand for, and what once was lost is still said to be.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.headers import quiet
from dicom_node.image.decode import Layout, Stored, decode
from dicom_node.image.refusal import NotAnalysable
from dicom_node.objects.encode import pixel_bytes

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""What `transcode` writes, in the order in which it is asked for."""
# Where each frame begins in compressed pixels, and how long it is.
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


class CannotTranscode(ValueError):
    """The object cannot be written in that transfer syntax; the message says why, without what is in it."""


def transcode(content: bytes, syntax: UID) -> bytes:
    """Return a DICOM file (PS3.10) with the same instance in a transfer syntax of `PLAIN`.

    Raises
    ------
    CannotTranscode
        If it is no DICOM file, if `syntax` is another one, or if its pixels cannot be decoded or have several frames.
    """
    if syntax not in PLAIN:
        raise CannotTranscode("only to explicit and implicit VR little endian")
    with quiet():
        try:
            dataset = pydicom.dcmread(BytesIO(content))
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated and "PixelData" in dataset:
                _decompress(dataset)
            if "PixelData" in dataset:
                # PS3.5 8.2: OW, but OB for bytes where the VR is written.
                words = syntax == ImplicitVRLittleEndian or dataset.BitsAllocated > 8
                dataset["PixelData"].VR = "OW" if words else "OB"
            dataset.file_meta.TransferSyntaxUID = syntax
            written = BytesIO()
            dataset.save_as(written, enforce_file_format=True)
        except NotAnalysable as refused:
            raise CannotTranscode(refused.reason.sentence) from None
        except Exception as error:
            # pydicom raises many kinds, whose texts may hold what is in the file.
            raise CannotTranscode(type(error).__name__) from None
    return written.getvalue()


def _decompress(dataset: Dataset) -> None:
    stored, layout = decode(dataset)
    data = pixel_bytes(_with_sign(stored)[np.newaxis], bits_allocated=layout.bits_allocated)
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].is_undefined_length = False
    for keyword in _OFFSETS:
        if keyword in dataset:
            del dataset[keyword]
    _describe(dataset, stored, layout)


def _describe(dataset: Dataset, stored: Stored, layout: Layout) -> None:
    """Say how the decoded pixels lie (PS3.3 C.7.6.3.1.2, PS3.5 8.2)."""
    if layout.samples == 1:
        return
    # The colour transformations of JPEG and JPEG 2000 are undone; chroma that was halved is whole again.
    dataset.PhotometricInterpretation = "YBR_FULL" if stored.colours == "YBR" else "RGB"
    dataset.PlanarConfiguration = 0


def _with_sign(stored: Stored) -> np.ndarray[tuple[int, ...], np.dtype[np.integer]]:
    """Two's complement of Bits Stored in all of Bits Allocated."""
    if not stored.signed:
        return stored.values
    sign = 1 << (stored.bits - 1)
    return (stored.values.astype(np.int32) ^ sign) - sign
