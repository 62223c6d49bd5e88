"""Files of tensors are read without running what they say; whatever is no dictionary of tensors is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

from training.networks import pickled_tensors

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


# --- What torch.save wrote, without PyTorch: its names stand in modules of the test's own -----------------------------


class FloatStorage: ...


class LongStorage: ...


class DoubleStorage: ...


def _rebuild_tensor_v2() -> None: ...


def torch_modules() -> dict[str, ModuleType]:
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    for module, named in ((torch, FloatStorage), (torch, LongStorage), (torch, DoubleStorage)):
        setattr(module, named.__name__, named)
        named.__module__ = "torch"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    _rebuild_tensor_v2.__module__ = "torch._utils"
    torch._utils = utils  # type: ignore[attr-defined]
    return {"torch": torch, "torch._utils": utils}


class Storage:
    """The values that tensors are parts of."""

    def __init__(self, values: npt.ArrayLike, kind: type = FloatStorage, key: str = "0") -> None:
        dtype = {FloatStorage: "<f4", LongStorage: "<i8", DoubleStorage: "<f8"}[kind]
        self.values, self.kind, self.key = np.asarray(values, dtype=dtype), kind, key


class Tensor:
    """A part of a storage: where it begins, how many values and at what steps."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.parts = storage, offset, shape, strides

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_tensor_v2, (*self.parts, False, OrderedDict())


class Calling:
    """An object that is made again by calling a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.how = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.how


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Storage):
            return None
        return "storage", value.kind, value.key, "cpu", len(value.values), None


def pickled(value: object, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, torch_modules()):
        Pickler(file, protocol).dump(value)
    return file.getvalue()


def stored(*storages: Storage) -> bytes:
    """The keys of storages, and their values."""
    values = [struct.pack("<q", len(one.values)) + one.values.tobytes() for one in storages]
    return pickled([one.key for one in storages]) + b"".join(values)


def saved(tensors: object, *storages: Storage, first: tuple[object, ...] = (MAGIC, PROTOCOL, MACHINE)) -> bytes:
    return b"".join(pickled(value) for value in first) + pickled(tensors) + stored(*storages)


def load(content: bytes, folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    (folder / "weights.pth").write_bytes(content)
    return pickled_tensors.load(folder / "weights.pth")


def two_tensors() -> bytes:
    counts, kernel = Storage([7], LongStorage, "5"), Storage(np.arange(24) / 4, key="9")
    tensors = OrderedDict(batches=Tensor(counts, 0, (), ()), kernel=Tensor(kernel, 0, (2, 3, 4), (12, 4, 1)))
    return saved(tensors, counts, kernel)


# --- Tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_are_read_by_name_and_counters_are_left_out(tmp_path: Path) -> None:
    tensors = load(two_tensors(), tmp_path)
    assert list(tensors) == ["kernel"]
    assert tensors["kernel"].dtype == np.float32
    np.testing.assert_array_equal(tensors["kernel"], (np.arange(24) / 4).reshape(2, 3, 4))


def test_several_tensors_share_a_storage_each_with_its_own_steps(tmp_path: Path) -> None:
    storage = Storage(np.arange(6))
    tensors = OrderedDict(
        turned=Tensor(storage, 0, (3, 2), (1, 3)), part=Tensor(storage, 4, (2,), (1,)), one=Tensor(storage, 3, (), ())
    )
    read = load(saved(tensors, storage), tmp_path)
    np.testing.assert_array_equal(read["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["part"], [4, 5])
    assert read["one"] == 3
    assert read["one"].shape == ()


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("at", range(5), ids=["magic number", "protocol", "machine", "tensors", "keys"])
def test_a_pickle_that_calls_a_function_is_refused_and_calls_nothing(at: int, protocol: int, tmp_path: Path) -> None:
    called = tmp_path / "called"
    parts = [pickled(part) for part in (MAGIC, PROTOCOL, MACHINE, OrderedDict(), list[str]())]
    hostile = pickled(Calling(os.mkdir, str(called)), protocol)
    pickle.loads(hostile)  # noqa: S301
    assert called.is_dir()  # it does call, where nobody looks
    called.rmdir()
    parts[at] = hostile
    with pytest.raises(ValueError, match=r"weights\.pth.*mkdir"):
        load(b"".join(parts), tmp_path)
    assert not called.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "torch load", "torch._utils __builtins__", "collections abc"],
)
def test_names_that_tensors_do_not_need_are_refused(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.partition(" ")
    naming = pickle.PROTO + b"\x02" + pickle.GLOBAL + f"{module}\n{attribute}\n".encode() + pickle.STOP
    with pytest.raises(ValueError, match=f"it names {module}.{attribute}"):
        load(naming, tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        7,
        "text",
        [1.0, 2.0],
        None,
        {"bias": 1.0},
        {"bias": "text"},
        {"bias": Storage([1.0])},
        {"bias": [Tensor(Storage([1.0]), 0, (1,), (1,))]},
        {"bias": Tensor(7, 0, (1,), (1,))},  # type: ignore[arg-type]
        {"bias": Tensor(Storage([1.0]), "0", (1,), (1,))},  # type: ignore[arg-type]
        {"bias": Tensor(Storage([1.0]), 0, 1, 1)},  # type: ignore[arg-type]
        {"bias": Tensor(Storage([1.0], DoubleStorage), 0, (1,), (1,))},
        {"bias": Tensor(Storage([1.0], key="1"), 0, (1,), (1,))},
    ],
    ids=lambda tensors: type(tensors).__name__,
)
def test_anything_but_a_dictionary_of_tensors_is_refused(tensors: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        load(saved(tensors, Storage([1.0])), tmp_path)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(Storage(range(6)), 0, (7,), (1,)),
        Tensor(Storage(range(6)), 6, (1,), (1,)),
        Tensor(Storage(range(6)), 0, (3, 2), (2, 2)),
        Tensor(Storage(range(6)), -1, (2,), (1,)),
        Tensor(Storage(range(6)), 5, (2,), (-1,)),
        Tensor(Storage(range(6)), 0, (-2,), (1,)),
        Tensor(Storage(range(6)), 0, (2, 3), (1,)),
        Tensor(Storage(range(6)), 0, (1,), (2**70,)),
        Tensor(Storage(range(6)), 0, (2**40,), (0,)),
    ],
    ids=[
        "too long",
        "begins behind the end",
        "steps too wide",
        "begins before",
        "steps back",
        "less than nothing",
        "shape without steps",
        "step beyond any memory",
        "one value a million million times",
    ],
)
def test_a_tensor_that_is_no_part_of_its_storage_is_refused(tensor: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        load(saved({"bias": tensor}, tensor.parts[0]), tmp_path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    content = two_tensors()
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"."):
            load(content[:length], tmp_path)


@pytest.mark.parametrize("count", [-1, -2, 25, 2**50, 2**61, 2**63 - 1])
def test_a_storage_of_another_length_than_stated_is_refused(count: int, tmp_path: Path) -> None:
    content = two_tensors()
    at = len(content) - 24 * 4 - 8
    assert struct.unpack_from("<q", content, at) == (24,)
    with pytest.raises(ValueError, match=r"."):
        load(content[:at] + struct.pack("<q", count) + content[at + 8 :], tmp_path)


@pytest.mark.parametrize(
    "first",
    [(MAGIC + 1, PROTOCOL, MACHINE), (MAGIC, 1002, MACHINE), (MAGIC, PROTOCOL, MACHINE | {"little_endian": False})],
    ids=["another magic number", "another protocol", "big endian"],
)
def test_other_ways_of_writing_are_refused(first: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not written"):
        load(saved({}, first=first), tmp_path)


def test_a_file_of_todays_pytorch_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(OrderedDict()))
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load(file.getvalue(), tmp_path)
