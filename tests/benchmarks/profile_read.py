"""Where a worker's time goes while it reads, by step, as py-spy sees it: a worker reads as ever, and is looked at.

    python -m tests.benchmarks.profile_read [--images 60] [--rate 200] [--image FILE]

Two workers are looked at, one after the other: of one those threads count that run, which is its processor time; of
the other its main thread counts, whether it runs or waits, which is the time that passes. Who looks at a process needs
the right to trace it: root has it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from models.settings import Peer
from models.upgrade import upgrade
from tests.benchmarks.reading import answer_of, fill, radiograph_of, started, tell
from tests.benchmarks.results import file_system, save
from tests.servers import Node, given

ANYTHING = ""
STEPS = (
    ("open the file", "worker/analyse.py", "open_dataset _open"),
    ("decode", "image/decode.py", ANYTHING),
    ("decode", "image/codestream.py", ANYTHING),
    ("grey levels", "image/grey.py", ANYTHING),
    ("digest of the pixels", "dicom_node/pixels.py", "_digest"),
    ("overview", "image/scale.py", "overview shrunk"),
    ("borders, shutters", "image/exposed.py", ANYTHING),
    ("gate", "image/gate.py", ANYTHING),
    ("resampling", "image/scale.py", "resampled"),
    ("contrast", "dicom_node/pixels.py", "_contrasted"),
    ("else of the model input", "dicom_node/pixels.py", ANYTHING),
    ("the network", "worker/network.py", ANYTHING),
    ("region", "worker/regions.py", ANYTHING),
    ("model input as PNG", "worker/analyse.py", "as_png"),
    ("model input to disk", "dicom_node/spool.py", ANYTHING),
    ("claim", "worker/claims.py", "claim"),
    ("lease", "worker/leases.py", ANYTHING),
    ("record", "worker/analyse.py", "_record"),
    ("log", "models/logs.py", ANYTHING),
    ("may it be read?", "worker/bundle.py", ANYTHING),
    ("look it up", "worker/analyse.py", "_analyse"),
)
"""Step, file and functions (all where none is named): the innermost frame of a stack that is one of these decides."""
OTHER = "the rest"
MAIN = "_work (tests/benchmarks/reading.py"
"""A frame of every stack of the main thread."""
WAITING = ("wait", "_wait_for_tstate_lock", "_worker")
"""Innermost functions of threads that wait, although py-spy takes some of them for running when they are young."""
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*?)(:\d+)?\)")


class Profile(NamedTuple):
    """Milliseconds of each image, by step, of processor time and of time."""

    processor: dict[str, float]
    elapsed: dict[str, float]


def main() -> None:
    """Look, print and save."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile_read")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rate", type=int, default=200, help="samples a second")
    parser.add_argument("--image", type=Path, help="default: a drawn limb of 10 MB, uncompressed")
    given_ = parser.parse_args()
    program = py_spy()
    with tempfile.TemporaryDirectory(prefix="osteon-profile-") as folder:
        image = given_.image or radiograph_of(Path(folder) / "limb.dcm")
        found = looked_at(program, Path(folder), image, images=given_.images, rate=given_.rate)
        disk = file_system(Path(folder))
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    result = {
        "py_spy": version,
        "file_system": disk,
        "image": "a drawn limb of 2500 x 2048" if given_.image is None else given_.image.name,
        "images": given_.images,
        "load": os.getloadavg(),
        "processor_milliseconds": found.processor,
        "milliseconds": found.elapsed,
    }
    save("profile-read", result)
    print("\n".join(table(found)))


def py_spy() -> str:
    """Return the program: of this environment, else of the PATH."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    found = shutil.which("py-spy", path=folders)
    if found is None:
        sys.exit("py-spy is not installed")
    return found


def looked_at(program: str, folder: Path, image: Path, *, images: int, rate: int) -> Profile:
    """Have a worker read so many images, twice, and look at it."""
    settings = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        peers=[Peer(name="room", ae_title="ROOM", role="source")],
    )
    upgrade(settings)
    node = Node(settings, folder / "log")
    found = []
    for idle in (False, True):
        fill(settings, image, images)
        stacks, spent = _recorded(program, node, folder / f"stacks-{idle}", image, rate=rate, idle=idle)
        samples = by_step(stacks, main_only=idle)
        all_ = spent["elapsed" if idle else "cpu"]
        found.append({step: all_ / images * count / samples.total() for step, count in samples.most_common()})
    node.stop()
    return Profile(*found)


def by_step(stacks: str, *, main_only: bool) -> Counter[str]:
    """Count the samples of each step in stacks as py-spy writes them ("raw": frames from the outermost, a number).

    Of the main thread alone, whether it runs or waits; else of all that run.
    """
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = [found for frame in stack.split(";") if (found := _FRAME.fullmatch(frame)) is not None]
        if MAIN in stack if main_only else frames and _function(frames[-1]) not in WAITING:
            counts[_step(frames)] += int(number)
    return counts


def _step(frames: list[re.Match[str]]) -> str:
    """Return the step that a stack belongs to."""
    for frame in reversed(frames):
        for step, file, functions in STEPS:
            if frame["file"].endswith(file) and (not functions or _function(frame) in functions.split()):
                return step
    return OTHER


def _function(frame: re.Match[str]) -> str:
    """A frame's function without its class."""
    return frame["function"].rpartition(".")[2]


def table(found: Profile) -> list[str]:
    """Lines of Markdown: milliseconds of each image, and the share of it."""
    lines = ["| step | processor time, ms | | time, ms | |", "|---|---:|---:|---:|---:|"]
    totals = sum(found.processor.values()), sum(found.elapsed.values())
    for step in sorted({*found.processor, *found.elapsed}, key=lambda step: -found.processor.get(step, 0.0)):
        cells = []
        for kind, total in zip(found, totals, strict=True):
            value = kind.get(step, 0.0)
            cells.append(f"{value:.1f} | {value / total:.1%}")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return [*lines, f"| all | {totals[0]:.1f} | | {totals[1]:.1f} | |"]


def _recorded(
    program: str, node: Node, target: Path, image: Path, *, rate: int, idle: bool
) -> tuple[str, dict[str, float]]:
    """Return the stacks of a worker that reads all that waits, and its milliseconds."""
    child = started(node, "pipeline", image, 0)
    command = [program, "record", "--format", "raw", "--rate", str(rate), "--pid", str(child.pid)]
    command += ["--output", str(target), "--nolineno", *(["--idle"] if idle else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watcher:
        assert watcher.stdout is not None
        # It says so when it has found its way about the process.
        said = watcher.stdout.readline()
        while said and "Sampling process" not in said:
            said = watcher.stdout.readline()
        assert said, "py-spy could not look at the worker"
        began = time.perf_counter()
        tell(child)
        answer = answer_of(child)
        watcher.communicate(timeout=60)
    return target.read_text(), {"cpu": answer["cpu"], "elapsed": 1000 * (answer["ended"] - began)}


if __name__ == "__main__":
    main()
