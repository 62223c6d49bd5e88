"""Processes that read images as a worker does, or only in part, so that their cost can be compared.

`bare` decodes each and runs the model on an input that is ready; `prepared` also makes the input of it, as `osteon
predict` does; `pipeline` is a worker's whole work, from the claim to the prediction in the record and the model input
on disk. Such a process says "ready" when it is, and begins when it is told. `steps` times the steps of one image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from models.database import Database
from models.settings import Settings, load_settings
from tests.phantom import limb
from tests.servers import Node

SIZE = (2500, 2048)
"""Rows and columns of what is read where nothing else is said: 10 MB."""


def radiograph_of(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a radiograph of this size, 12 bits in 16, uncompressed; return `path`."""
    from tests.radiographs import radiograph

    radiograph(limb(*size, highest=65_535, dtype=np.uint16), noise=0.6).save_as(path, enforce_file_format=True)
    return path


def fill(settings: Settings, path: Path, images: int) -> None:
    """Receive the image so many times, each under UIDs of its own."""
    from dicom_node.headers import read_header
    from dicom_node.intake import Intake, Sender, StoredFile
    from dicom_node.spool import Spool

    database, spool = Database.of(settings), Spool(settings.data_dir / "spool")
    intake = Intake(database, settings)
    dataset = pydicom.dcmread(path)
    for _ in range(images):
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        key, sha256 = spool.put_bytes(buffer.getvalue())
        stored = StoredFile(key, len(buffer.getvalue()), sha256, 0, str(dataset.file_meta.TransferSyntaxUID))
        intake.record(Sender("room", "ROOM", "OSTEON", "127.0.0.1"), read_header(dataset), stored)
    database.close()


def drained(node: Node, kind: str, workers: int, image: Path, images: int) -> dict[str, float]:
    """Have so many processes read so many images in all; return images per second, and processor time of each in ms."""
    children = [started(node, kind, image, images // workers) for _ in range(workers)]
    began = time.perf_counter()
    for child in children:
        tell(child)
    answers = [answer_of(child) for child in children]
    seconds = max(answer["ended"] for answer in answers) - began
    assert sum(answer["images"] for answer in answers) == images
    return {"rate": images / seconds, "cpu": sum(answer["cpu"] for answer in answers) / images}


def started(node: Node, kind: str, image: Path, images: int) -> subprocess.Popen[str]:
    """Start a process that reads so many images, `pipeline` all that wait; return it when it is ready."""
    child = _child(node, kind, image, str(images))
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def tell(child: subprocess.Popen[str]) -> None:
    """Have it begin."""
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def answer_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for its end; return what it says."""
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 0
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def steps(node: Node, image: Path) -> dict[str, float]:
    """Return the processor time of each step of one image, in milliseconds."""
    return answer_of(_child(node, "steps", image))


def _child(node: Node, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", __name__, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=node.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


# --- in the child -----------------------------------------------------------------------------------------------------


def _work(kind: str, image: Path, count: int) -> dict[str, float]:
    step = {"bare": _bare, "prepared": _prepared, "pipeline": _pipeline}[kind](image)
    print("ready", flush=True)
    sys.stdin.readline()
    began, images = time.process_time(), 0
    while step() and (kind == "pipeline" or images + 1 < count):
        images += 1
    images += kind != "pipeline"
    # perf_counter is one clock for all processes of the machine.
    return {"images": images, "cpu": 1000 * (time.process_time() - began), "ended": time.perf_counter()}


def _bare(image: Path) -> Callable[[], object]:
    from dicom_node.image.decode import decode
    from dicom_node.pixels import model_input
    from tests.shipped import with_open_gate
    from worker.analyse import open_dataset
    from worker.predictor import Predictor

    predictor = Predictor(with_open_gate())
    ready = model_input(open_dataset(image), predictor.size)
    predictor.read(ready)
    return lambda: (decode(open_dataset(image)), predictor.read(ready))


def _prepared(image: Path) -> Callable[[], object]:
    from tests.shipped import with_open_gate
    from worker.analyse import open_dataset, read_dataset
    from worker.predictor import Predictor

    predictor = Predictor(with_open_gate())
    read_dataset(open_dataset(image), predictor)
    return lambda: read_dataset(open_dataset(image), predictor)


def _pipeline(image: Path) -> Callable[[], object]:
    from dicom_node.spool import Spool
    from models import logs
    from tests.shipped import with_open_gate
    from tests.site import reader
    from worker.analyse import Analyst, open_dataset, read_dataset
    from worker.isolation import Isolation
    from worker.predictor import Predictor

    settings = load_settings()
    logs.configure("worker", level="info")
    predictor, database = Predictor(with_open_gate()), Database.of(settings)
    read_dataset(open_dataset(image), predictor)
    spool = Spool(settings.data_dir / "spool")
    analyst = Analyst(settings, database, spool, reader(database, predictor), isolation=Isolation.of(settings))
    return analyst.analyse_next


def _steps(image: Path) -> dict[str, float]:
    """Processor time of each step of one image, without the record; what a thread does beside a step counts to it."""
    from dicom_node import pixels
    from dicom_node.image import exposed, gate, grey, scale
    from tests.shipped import with_open_gate
    from worker.analyse import as_png, open_dataset, read_dataset
    from worker.predictor import Predictor

    spent: dict[str, float] = defaultdict(float)
    predictor = Predictor(with_open_gate())
    rounds = 10
    for module, name in (
        (pixels, "decode"),
        (pixels, "_digest"),
        (grey, "levels"),
        (scale, "overview"),
        (exposed, "borders"),
        (gate, "refuse_what_is_no_radiograph"),
        (scale, "resampled"),
        (pixels, "_contrasted"),
        (predictor, "read"),
    ):
        setattr(module, name, _timed(getattr(module, name), name.strip("_"), spent))
    with _timing("all", spent):
        for _ in range(rounds):
            with _timing("open", spent):
                dataset = open_dataset(image)
            read = read_dataset(dataset, predictor)
            with _timing("png", spent):
                as_png(read.image)
    return {name: 1000 * seconds / rounds for name, seconds in sorted(spent.items(), key=lambda one: -one[1])}


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        with _timing(name, spent):
            return function(*arguments, **named)

    return timed


@contextmanager
def _timing(name: str, spent: dict[str, float]) -> Iterator[None]:
    clock = time.process_time if name in ("all", "read") else time.thread_time
    began = clock()
    yield
    spent[name] += clock() - began


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        print(json.dumps(_steps(Path(sys.argv[2]))))
    else:
        print(json.dumps(_work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
