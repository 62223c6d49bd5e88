"""Durable receive rate of the listener beside DCMTK's storescp and Orthanc, in the same run, as ratios.

One association and four, instances of 10 MB and 1 MB; beside the rate the processor time that the receiving side takes.
Only Osteon syncs what it answers. With four associations also two listeners on one port, on PostgreSQL.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.uid import generate_uid

from console.ports import free_port
from models.settings import Peer
from models.upgrade import upgrade
from tests.benchmarks.results import file_system, save, spread
from tests.peers import require_peer
from tests.servers import Node, PostgreSQL, given, orthanc, wait_until

ROUNDS = 5
SIZES = {"10 MB": (2500, 2048, 5), "1 MB": (724, 724, 40)}
"""Rows, columns (16 bit) and how many instances each association sends in a round."""

ASSOCIATIONS = (1, 4)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=list(SIZES))
def instances(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, radiographs
) -> tuple[str, list[Path]]:
    """For each association a folder of distinct CR instances of one size, made from RG3's header and noise."""
    rows, columns, count = SIZES[request.param]
    folder = tmp_path_factory.mktemp("instances")
    source = pydicom.dcmread(radiographs["RG3"])
    noise = np.random.default_rng(1).integers(0, 1024, (rows, columns), dtype=np.uint16)
    source.Rows, source.Columns, source.PixelData = rows, columns, noise.tobytes()
    folders = [folder / str(number) for number in range(max(ASSOCIATIONS))]
    for target in folders:
        target.mkdir()
        for number in range(count):
            source.InstanceNumber = number + 1
            source.save_as(target / f"{number}.dcm")
    return request.param, folders


@pytest.mark.parametrize("associations", ASSOCIATIONS)
def test_receive_rate_beside_storescp_and_orthanc(
    instances: tuple[str, list[Path]],
    associations: int,
    tmp_path: Path,
    postgresql: PostgreSQL,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size, folders = instances
    with ExitStack() as stack:
        orthanc_port, _ = stack.enter_context(orthanc(tmp_path / "orthanc"))
        peers = {
            "osteon": _Receiver("OSTEON", *stack.enter_context(_osteon(tmp_path / "one"))),
            "storescp": _Receiver("STORESCP", *stack.enter_context(_storescp(tmp_path))),
            "orthanc": _Receiver("PACS", orthanc_port, _child("Orthanc")),
        }
        if associations > 1:
            for processes in (1, 2):
                database = {"database_url": postgresql.new_database().render_as_string(hide_password=False)}
                node = _osteon(tmp_path / f"postgresql-{processes}", listener={"processes": processes}, **database)
                peers[f"postgresql-{processes}"] = _Receiver("OSTEON", *stack.enter_context(node))
        for number in range(ROUNDS):
            # Who goes first changes, so that a machine that gets slower is fair to all.
            for name in sorted(peers, key=lambda name: (list(peers).index(name) + number) % len(peers)):
                # The copies get new UIDs each time, or the second round would measure duplicates.
                peers[name].measure(folders[:associations])
    rates = {name: peer.rates for name, peer in peers.items()}
    ratios = {
        f"{ours}_over_{theirs}": [rate / other for rate, other in zip(rates[ours], rates[theirs], strict=True)]
        for ours in peers
        for theirs in ("storescp", "orthanc")
        if ours not in ("storescp", "orthanc")
    }
    result = {
        "size": size,
        "associations": associations,
        "file_system": file_system(tmp_path),
        "instances_per_second": {name: spread(values) for name, values in rates.items()},
        "processor_ms_per_instance": {name: spread(peer.processor_ms) for name, peer in peers.items()},
        **{name: spread(values) for name, values in ratios.items()},
    }
    save(f"receive-{size.replace(' ', '')}-{associations}", result)
    with capsys.disabled():
        print(f"\n{size}, {associations} associations ({result['file_system']}):")
        for name, peer in peers.items():
            rate, cost = statistics.median(peer.rates), statistics.median(peer.processor_ms)
            print(f"  {name:12} {rate:7.1f}/s {cost:6.1f} ms of processor time each")
        for name, values in ratios.items():
            print(f"  {name:30} {statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})")


class _Receiver:
    """A storage SCP that is sent to, and what it took."""

    def __init__(self, title: str, port: int, pid: int) -> None:
        self._title, self._port, self._process = title, port, psutil.Process(pid)
        self.rates: list[float] = []
        self.processor_ms: list[float] = []

    def measure(self, folders: list[Path]) -> None:
        """Send all folders at once, each over an association of its own."""
        for folder in folders:
            _renew(folder)
        storescu = str(require_peer("storescu"))
        command = [storescu, "-R", "-aet", "BENCH", "-aec", self._title, "-pdu", "131072", "127.0.0.1", str(self._port)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        files = [sorted(map(str, folder.iterdir())) for folder in folders]
        before, begun = self._processor_seconds(), time.perf_counter()
        senders = [subprocess.Popen([*command, *of_one], env=environment) for of_one in files]
        assert [sender.wait() for sender in senders] == [0] * len(senders)
        count = sum(map(len, files))
        self.rates.append(count / (time.perf_counter() - begun))
        self.processor_ms.append(1000 * (self._processor_seconds() - before) / count)

    def _processor_seconds(self) -> float:
        """Of the process and its children, those that it has waited for included."""
        family = [self._process, *self._process.children()]
        return sum(sum(process.cpu_times()[:4]) for process in family)


def _child(name: str) -> int:
    """Return the process ID of a server of ours."""
    return next(child.pid for child in psutil.Process().children() if child.name() == name)


def _renew(folder: Path) -> None:
    """Give each instance a UID that was never sent, of a study of the folder's own."""
    study, series = generate_uid(), generate_uid()
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(path)


@contextmanager
def _osteon(folder: Path, **more: Any) -> Iterator[tuple[int, int]]:
    folder.mkdir()
    settings = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        log_level="warning",
        peers=[Peer(name="bench", ae_title="BENCH", role="source")],
        **more,
    )
    upgrade(settings)
    node = Node(settings, folder / "node.log")
    try:
        process = node.start("listen")
        node.wait_until_listening()
        yield settings.port, process.pid
    finally:
        node.stop()


@contextmanager
def _storescp(folder: Path) -> Iterator[tuple[int, int]]:
    port, target = free_port(), folder / "storescp"
    target.mkdir()
    process = subprocess.Popen(
        [str(require_peer("storescp")), "-aet", "STORESCP", "--fork", "-od", str(target), "-pdu", "131072", str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(_echoes(port), what="storescp answers")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _echoes(port: int) -> Callable[[], bool]:
    echoscu = str(require_peer("echoscu"))
    command = [echoscu, "-aec", "STORESCP", "127.0.0.1", str(port)]
    return lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0
