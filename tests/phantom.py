"""A drawn limb: what a test uses where any radiograph will do and none may be taken from a patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

PLANTED = "PLANTED^NAME"


def limb(rows: int = 120, columns: int = 96, *, highest: int = 255, dtype: type[Any] = np.uint8) -> NDArray[Any]:
    """Air, soft tissue and two bones with a joint; no symmetry, 0 to `highest`, bones brightest."""
    y = (np.arange(rows)[:, None] + 0.5) / rows
    x = (np.arange(columns)[None, :] + 0.5) / columns
    middle = 0.45 + 0.1 * y
    tissue = np.clip(1 - (np.abs(x - middle) / 0.3) ** 2, 0, None) * 0.45
    shaft = np.clip(1 - (np.abs(x - middle) / (0.09 + 0.05 * np.abs(y - 0.6))) ** 2, 0, None)
    gap = 1 - 0.8 * np.exp(-(((y - 0.6 - 0.1 * (x - 0.5)) / 0.02) ** 2))
    second = np.clip(1 - ((x - middle - 0.17) ** 2 / 0.0016 + (y - 0.25) ** 2 / 0.04), 0, None)
    grey = 0.03 + 0.03 * x + tissue + 0.5 * shaft * gap + 0.35 * second
    scaled: NDArray[Any] = (grey / grey.max() * highest).round().astype(dtype)
    return scaled


def dataset(stored: NDArray[Any], **attributes: Any) -> Dataset:
    """Return an uncompressed image of these stored values; `attributes` override or, when None, remove."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.PatientName = PLANTED
    made.Rows, made.Columns = stored.shape[:2]
    made.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    made.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    made.BitsAllocated = stored.dtype.itemsize * 8
    made.BitsStored = made.BitsAllocated
    made.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        made.PlanarConfiguration = 0
    made["PixelData"] = pixel_data(stored)
    for name, value in attributes.items():
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)
    return made


def pixel_data(stored: NDArray[Any]) -> DataElement:
    """Return the values as the element Pixel Data."""
    holder = Dataset()
    holder.add_new("PixelData", "OB" if stored.dtype.itemsize == 1 else "OW", stored.tobytes())
    return holder["PixelData"]
