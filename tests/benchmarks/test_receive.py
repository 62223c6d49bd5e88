"""Durable receive rate of the listener beside DCMTK's storescp and Orthanc, in the same run, as ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from console.ports import free_port
from models.settings import Peer
from models.upgrade import upgrade
from tests.benchmarks.results import file_system, save, spread
from tests.peers import require_peer
from tests.servers import Node, given, orthanc, wait_until

ROUNDS = 5
SIZES = {"10 MB": (2500, 2048, 20), "1 MB": (724, 724, 60)}
"""Rows, columns (16 bit) and how many instances are sent in a round."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=list(SIZES))
def instances(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, radiographs
) -> tuple[str, Path]:
    """A folder of distinct CR instances of one size, made from RG3's header and noise."""
    rows, columns, count = SIZES[request.param]
    folder = tmp_path_factory.mktemp("instances")
    source = pydicom.dcmread(radiographs["RG3"])
    noise = np.random.default_rng(1).integers(0, 1024, (rows, columns), dtype=np.uint16)
    source.Rows, source.Columns, source.PixelData = rows, columns, noise.tobytes()
    for number in range(count):
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        source.InstanceNumber = number + 1
        source.save_as(folder / f"{number}.dcm")
    return request.param, folder


def test_receive_rate_beside_storescp_and_orthanc(
    instances: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, folder = instances
    rates: dict[str, list[float]] = {"osteon": [], "storescp": [], "orthanc": []}
    with _osteon(tmp_path) as osteon, _storescp(tmp_path) as storescp, orthanc(tmp_path / "orthanc") as (pacs, _):
        for _ in range(ROUNDS):
            # The copies get new UIDs each round, or the second round would measure duplicates.
            for name, title, port in (
                ("storescp", "STORESCP", storescp),
                ("osteon", "OSTEON", osteon),
                ("orthanc", "PACS", pacs),
            ):
                _renew(folder)
                rates[name].append(_rate(folder, title, port))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "size": size,
        "file_system": file_system(tmp_path),
        "instances_per_second": {name: spread(values) for name, values in rates.items()},
        "osteon_over_storescp": medians["osteon"] / medians["storescp"],
        "osteon_over_orthanc": medians["osteon"] / medians["orthanc"],
    }
    save(f"receive-{size.replace(' ', '')}", result)
    with capsys.disabled():
        print(
            f"\n{size}: osteon {medians['osteon']:.1f}/s (fsync), storescp {medians['storescp']:.1f}/s (no fsync), "
            f"Orthanc {medians['orthanc']:.1f}/s; × storescp {result['osteon_over_storescp']:.2f}, "
            f"× Orthanc {result['osteon_over_orthanc']:.2f} ({result['file_system']})"
        )


def _renew(folder: Path) -> None:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(path)


def _rate(folder: Path, title: str, port: int) -> float:
    storescu = require_peer("storescu")
    files = sorted(map(str, folder.iterdir()))
    begun = time.perf_counter()
    subprocess.run(
        [str(storescu), "-R", "-aet", "BENCH", "-aec", title, "-pdu", "131072", "127.0.0.1", str(port), *files],
        env={**os.environ, "TCP_NODELAY": "1"},
        check=True,
    )
    return len(files) / (time.perf_counter() - begun)


@contextmanager
def _osteon(folder: Path) -> Iterator[int]:
    settings = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        log_level="warning",
        peers=[Peer(name="bench", ae_title="BENCH", role="source")],
    )
    upgrade(settings)
    node = Node(settings, folder / "node.log")
    try:
        node.start("listen")
        node.wait_until_listening()
        yield settings.port
    finally:
        node.stop()


@contextmanager
def _storescp(folder: Path) -> Iterator[int]:
    port, target = free_port(), folder / "storescp"
    target.mkdir()
    process = subprocess.Popen(
        [str(require_peer("storescp")), "-aet", "STORESCP", "-od", str(target), "-pdu", "131072", str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(_echoes(port), what="storescp answers")
        yield port
    finally:
        process.terminate()
        process.wait()


def _echoes(port: int) -> Callable[[], bool]:
    echoscu = str(require_peer("echoscu"))
    command = [echoscu, "-aec", "STORESCP", "127.0.0.1", str(port)]
    return lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0
