"""From file to model input at 2500 × 2048, in time and memory, beside pydicom with its plug-ins in the same run."""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID

from dicom_node.objects.encode import COMPRESSED, NATIVE
from dicom_node.pixels import model_input
from tests.benchmarks.results import save, spread
from tests.phantom import limb
from tests.radiographs import radiograph
from worker.analyse import open_dataset

ROWS, COLUMNS = 2500, 2048
SIZE = (384, 384)
ROUNDS = 11
NOISE = 0.6
"""Standard deviation in greys of 255 (10 of 4095), as detectors have it; without it, scaling up leaves none."""

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it tells of every decoder that it has not

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> dict[UID, Path]:
    """RG2 (a hip) at 2500 × 2048 and 12 bits, in every transfer syntax; 8 bits where that has no more."""
    folder = tmp_path_factory.mktemp("radiographs")
    source = pydicom.dcmread(test_data / "dicom" / "WG04_RG2_UNC.dcm").pixel_array.astype(np.float32)
    larger = np.asarray(Image.fromarray(source).resize((COLUMNS, ROWS), Image.Resampling.BICUBIC))
    picture = (larger.clip(0, source.max()) * (65_535 / source.max())).astype(np.uint16)
    written = {}
    for syntax in (*NATIVE, *COMPRESSED):
        written[syntax] = folder / f"{syntax.keyword}.dcm"
        radiograph(picture, noise=NOISE, transfer_syntax=syntax).save_as(written[syntax], enforce_file_format=True)
    return written


def test_time_and_memory_from_file_to_model_input_beside_pydicom(
    files: dict[UID, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    times: dict[UID, dict[str, list[float]]] = {syntax: {"osteon": [], "pydicom": []} for syntax in files}
    readers = {"osteon": osteon, "pydicom": with_pydicom}
    for measured in range(-1, ROUNDS):  # the first round only loads the decoders
        for syntax, path in files.items():
            for name, reader in readers.items():
                milliseconds = timed(reader, path)
                if milliseconds is not None and measured >= 0:
                    times[syntax][name].append(milliseconds)
    with capsys.disabled():
        print(f"\n{ROWS} × {COLUMNS}, 12 bits, median of {ROUNDS}; memory as multiples of the image's 10.24 MB")
        print(f"{'':31}{'file':>9}{'osteon':>11}{'pydicom':>11}{'ratio':>7}{'memory':>8}{'pydicom':>9}")
        for syntax, path in files.items():
            result = {
                "file_megabytes": path.stat().st_size / 1e6,
                "milliseconds": {name: spread(values) for name, values in times[syntax].items() if values},
                "memory_over_image": {name: grown(name, path) for name, values in times[syntax].items() if values},
            }
            save(f"pixels-{syntax.keyword}", result)
            print(_line(syntax, result["file_megabytes"], times[syntax], result["memory_over_image"]))


def osteon(path: Path) -> None:
    """As the worker does it."""
    model_input(open_dataset(path), SIZE)


def with_pydicom(path: Path) -> None:
    """As a user of pydicom would write it; it draws another picture, without anything that is done about contrast."""
    dataset = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = shown.min(), shown.max()
    grey = ((shown - low) / (high - low) * 255).astype(np.uint8)
    scale = min(SIZE[0] / grey.shape[0], SIZE[1] / grey.shape[1])
    drawn = Image.fromarray(grey).resize((round(grey.shape[1] * scale), round(grey.shape[0] * scale)))
    canvas = Image.new("L", (SIZE[1], SIZE[0]))
    canvas.paste(drawn, ((SIZE[1] - drawn.width) // 2, (SIZE[0] - drawn.height) // 2))
    np.asarray(canvas)


def timed(reader: Callable[[Path], None], path: Path) -> float | None:
    """Milliseconds; None where there is no decoder."""
    begun = time.perf_counter()
    try:
        reader(path)
    except RuntimeError:
        return None
    return (time.perf_counter() - begun) * 1000


def grown(name: str, path: Path) -> float:
    """How much the resident memory of a process grows at most that reads the image, as a multiple of 16-bit pixels.

    It has read a small image in the same transfer syntax before: what libraries take once is not counted.
    """
    command = [sys.executable, "-m", __name__, name, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(answer.stdout)) / (ROWS * COLUMNS * 2)


def _line(syntax: UID, megabytes: float, times: dict[str, list[float]], memory: dict[str, float]) -> str:
    ours, theirs = (statistics.median(times[name]) if times[name] else None for name in ("osteon", "pydicom"))
    parts = [f"{syntax.keyword:31}{megabytes:6.2f} MB{ours:8.1f} ms"]
    parts.append(f"{theirs:8.1f} ms{ours / theirs:7.2f}" if theirs and ours else f"{'–':>11}{'–':>7}")
    parts.append(f"{memory['osteon']:8.2f}" + (f"{memory['pydicom']:9.2f}" if theirs else f"{'–':>9}"))
    return "".join(parts)


def _measure(name: str, path: Path) -> None:
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    reader = {"osteon": osteon, "pydicom": with_pydicom}[name]
    syntax = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.dcm"
        radiograph(limb(96, 80), transfer_syntax=syntax).save_as(small, enforce_file_format=True)
        reader(small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before = _resident("VmRSS")
    reader(path)
    print(json.dumps(_resident("VmHWM") - before))


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


if __name__ == "__main__":
    _measure(sys.argv[1], Path(sys.argv[2]))
