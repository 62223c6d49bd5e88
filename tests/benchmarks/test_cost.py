"""How the cost of an image grows: with the images of its study, with its size, with the processes that read.

How it grows with the number of studies on record is `test_scale.py`. Processor time is beside time, since other work on
the machine makes only the latter much longer. `python -m tests.benchmarks.plot_cost` draws what is found.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest
from pydicom.uid import generate_uid

from console.pacs import StorageScp
from dicom_node.sender import Result, send
from models.settings import Peer, Settings, StudySettings
from models.upgrade import upgrade
from tests.benchmarks.parts import processor_seconds
from tests.benchmarks.reading import drained, fill, radiograph_of
from tests.benchmarks.results import file_system, save, spread
from tests.peers import require_peer
from tests.servers import Node, given, wait_until

ROUNDS = 3
SIZES = {0.25: (391, 320), 1: (781, 640), 4: (1562, 1280), 10: (2500, 2048), 20: (3536, 2896)}
"""Megabytes: rows and columns, two bytes each."""
INSTANCES = 12
"""That are received, and then read, in each round."""
PER_STUDY = (1, 2, 4, 8, 16)
OF_STUDIES = 32
"""Images that are sent in each round, whatever number of them is a study."""
WORKERS = [number for number in (1, 2, 3, 4) if number <= (os.cpu_count() or 1)]
BY_WORKERS = 24
"""Images that are read in each round, by all workers together."""

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ai_edge_litert")


def test_cost_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {size: radiograph_of(tmp_path / f"{size}.dcm", shape) for size, shape in SIZES.items()}
    settings, listening = _settings(tmp_path / "read"), _settings(tmp_path / "receive")
    received: dict[float, list[dict[str, float]]] = defaultdict(list)
    read: dict[float, list[dict[str, float]]] = defaultdict(list)
    reader, listener = Node(settings, tmp_path / "log"), Node(listening, tmp_path / "listener.log")
    try:
        process = psutil.Process(listener.start("listen").pid)
        listener.wait_until_listening()
        # The first instances make the listener's code warm.
        _received(images[1], tmp_path / "first", listening.port, process)
        for number in range(ROUNDS):
            for size, image in images.items():
                received[size].append(_received(image, tmp_path / f"{size}-{number}", listening.port, process))
                fill(settings, image, INSTANCES)
                read[size].append(_in_milliseconds(drained(reader, "pipeline", 1, image, INSTANCES)))
    finally:
        listener.stop()
        reader.stop()
    result = {
        "file_system": file_system(tmp_path),
        "instances": INSTANCES,
        "megabytes": {str(size): image.stat().st_size / 1e6 for size, image in images.items()},
        "receive": _spreads(received),
        "read": _spreads(read),
    }
    _keep("cost-size", result, capsys)


def test_cost_by_images_of_a_study(
    radiographs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs = StorageScp(tmp_path)
    settings = given(
        tmp_path / "node",
        study=StudySettings(quiet_time=1),
        peers=[
            Peer(name="bench", ae_title="BENCH", role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
    )
    node = Node(settings, tmp_path / "node.log")
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    try:
        node.start("up")
        node.wait_until_listening()
        _reported(node, pacs, radiographs["RG3"], tmp_path, studies=4, images=1)
        for _ in range(ROUNDS):
            for images in PER_STUDY:
                studies = OF_STUDIES // images
                found[images].append(
                    _reported(node, pacs, radiographs["RG3"], tmp_path, studies=studies, images=images)
                )
    finally:
        node.stop()
        pacs.stop()
    _keep("cost-study", {"file_system": file_system(tmp_path), "of_each_image": _spreads(found)}, capsys)


def test_cost_by_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _settings(tmp_path / "node")
    node, image = Node(settings, tmp_path / "log"), radiograph_of(tmp_path / "limb.dcm")
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for workers in WORKERS:
            fill(settings, image, BY_WORKERS)
            found[workers].append(drained(node, "pipeline", workers, image, BY_WORKERS))
    node.stop()
    _keep("cost-workers", {"file_system": file_system(tmp_path), "by_workers": _spreads(found)}, capsys)


def _settings(folder: Path) -> Settings:
    made = given(
        folder,
        broker_url="redis+socket:///nonexistent/valkey.sock",
        log_level="warning",
        peers=[Peer(name="room", ae_title="ROOM", role="source")],
    )
    upgrade(made)
    return made


def _received(image: Path, folder: Path, port: int, listener: psutil.Process) -> dict[str, float]:
    """Send the image under so many UIDs over one association; return milliseconds of each, and of the listener."""
    folder.mkdir()
    paths = [_renewed(image, folder / f"{number}.dcm", generate_uid()) for number in range(INSTANCES)]
    command = [str(require_peer("storescu")), "-aet", "ROOM", "-aec", "OSTEON", "-pdu", "131072"]
    before, began = sum(listener.cpu_times()[:2]), time.perf_counter()
    subprocess.run(
        [*command, "127.0.0.1", str(port), *map(str, paths)], env={**os.environ, "TCP_NODELAY": "1"}, check=True
    )
    seconds = time.perf_counter() - began
    spent = sum(listener.cpu_times()[:2]) - before
    for path in paths:
        path.unlink()
    return {"milliseconds": 1000 * seconds / INSTANCES, "processor_milliseconds": 1000 * spent / INSTANCES}


def _in_milliseconds(read: dict[str, float]) -> dict[str, float]:
    return {"milliseconds": 1000 / read["rate"], "processor_milliseconds": read["cpu"]}


def _reported(
    node: Node, pacs: StorageScp, source: Path, folder: Path, *, studies: int, images: int
) -> dict[str, float]:
    """Send so many studies at once and wait for their reports; return milliseconds for each image, by part."""
    waiting, paths = set(), []
    for _ in range(studies):
        study = generate_uid()
        waiting.add(study)
        paths += [_renewed(source, folder / f"{generate_uid()}.dcm", study) for _ in range(images)]
    before, began = processor_seconds(node), time.perf_counter()
    for _, outcome in send(node.address, paths, calling_ae_title="BENCH", timeout=60):
        assert outcome.result is Result.DELIVERED

    def all_came() -> bool:
        waiting.difference_update(report.study_instance_uid for report in pacs.new_reports())
        return not waiting

    wait_until(all_came, seconds=300, what="all reports arrive")
    seconds, after = time.perf_counter() - began, processor_seconds(node)
    for path in paths:
        path.unlink()
    spent = {part: 1000 * (after[part] - before.get(part, 0.0)) / len(paths) for part in after}
    return {**spent, "all parts": sum(spent.values()), "milliseconds": 1000 * seconds / len(paths)}


def _renewed(source: Path, target: Path, study: str) -> Path:
    """Copy an image under UIDs of its own."""
    dataset = pydicom.dcmread(source)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(target)
    return target


def _spreads(found: dict[Any, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return median, least and most of all rounds, of each thing that was measured."""
    return {
        str(key): {name: spread([one[name] for one in rounds]) for name in rounds[0]} for key, rounds in found.items()
    }


def _keep(name: str, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    result |= {"rounds": ROUNDS, "cores": os.cpu_count(), "load": os.getloadavg()}
    save(name, result)
    with capsys.disabled():
        print(f"\n{name}: {json.dumps(result, indent=1)}")
