"""Reads tensors that `torch.save` wrote before PyTorch 1.6, without PyTorch and without running its pickles.

Such a file is a row of pickles (a magic number, a protocol version, the machine, the object, the keys of its storages)
followed by each storage: its length as eight bytes, then its values, little endian. A pickle can name any function to
be called; here only the names that a dictionary of tensors needs are known, and every other is refused.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DAMAGE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    struct.error,
)
"""What reading a damaged file raises, besides ValueError: lengths that no memory holds, parts of another type."""


def load(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the float32 tensors by name; integer ones (counters) are left out.

    Raises ValueError when the file is not such a file or holds anything but a dictionary of tensors.
    """
    with path.open("rb") as file:
        try:
            return _load(file)
        except _DAMAGE as error:
            raise ValueError(f"{path.name} is not a dictionary of tensors as torch.save wrote them: {error}") from None


def _load(file: BinaryIO) -> dict[str, npt.NDArray[np.float32]]:
    if (_unpickled(file), _unpickled(file)) != (_MAGIC, _PROTOCOL):
        raise ValueError("The file was not written by torch.save before PyTorch 1.6.")
    machine = _unpickled(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("The file was not written on a little-endian machine.")
    tensors, keys = _unpickled(file), _unpickled(file)
    if not isinstance(tensors, dict) or not isinstance(keys, list):
        raise ValueError("The file holds something else than a dictionary of tensors.")
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    storages = {key: _values(file, dtypes[key]) for key in keys}
    return {
        name: tensor.of(storages[tensor.storage.key])
        for name, tensor in tensors.items()
        if tensor.storage.dtype == np.float32
    }


def _values(file: BinaryIO, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    (count,) = struct.unpack("<q", file.read(8))
    return np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype, count=count)


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[np.generic]
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        last = self.offset + sum((length - 1) * step for length, step in zip(self.shape, self.strides, strict=True))
        beyond = last >= len(values) or math.prod(self.shape) > len(values)
        if self.offset < 0 or min(self.strides, default=0) < 0 or beyond:
            raise ValueError("A tensor reaches beyond its storage.")
        steps = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps).astype(np.float32)


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Tensor:
    """Stand in for torch._utils._rebuild_tensor_v2; what follows the strides matters to gradients only."""
    return _Tensor(storage, offset, shape, strides)


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, reference: Iterable[object]) -> _Storage:
        kind, dtype, key, *_ = reference
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something else than a storage")
        return _Storage(dtype, key)


def _unpickled(file: BinaryIO) -> object:
    return _Unpickler(file).load()
