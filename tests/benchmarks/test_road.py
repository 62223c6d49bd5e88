"""How long a report takes, from the last C-STORE answer to the PACS: idle, and at 80 % of what the machine can do.

Sender, node and PACS share the machine. What it can do is measured first, by sending faster than it reads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pydicom
import pytest
from pydicom.uid import generate_uid

from console.pacs import StorageScp
from dicom_node.sender import Result, send
from models.settings import Peer, StudySettings
from tests.benchmarks.parts import processor_seconds
from tests.benchmarks.results import percentile, save
from tests.servers import Node, given, wait_until

STUDIES = 40
QUIET_SECONDS = 1.0
BURST = 60
"""So many studies at once show how many a second can be done."""
LOAD = 0.8
LOADED_STUDIES = 120

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StorageScp]:
    """A PACS that notes when each report came."""
    scp = StorageScp(tmp_path)
    yield scp
    scp.stop()


@pytest.fixture
def node(tmp_path: Path, pacs: StorageScp) -> Iterator[Node]:
    """`osteon up` as it is on one machine."""
    settings = given(
        tmp_path / "node",
        study=StudySettings(quiet_time=QUIET_SECONDS),
        peers=[
            Peer(name="bench", ae_title="BENCH", role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
    )
    node = Node(settings, tmp_path / "node.log")
    node.start("up")
    node.wait_until_listening()
    yield node
    node.stop()


def test_time_from_last_answer_to_report_in_the_pacs(
    node: Node, pacs: StorageScp, radiographs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = []
    for number in range(STUDIES):
        path, study = _new_study(radiographs["RG3"], tmp_path / f"{number}.dcm")
        outcome = next(outcome for _, outcome in send(node.address, [path], calling_ae_title="BENCH", timeout=30))
        answered_at = time.monotonic()
        assert outcome.result is Result.DELIVERED
        report = wait_until(lambda study=study: _report_of(pacs, study), what="the report arrives")
        beyond.append(report - answered_at - QUIET_SECONDS)
    result = {"studies": STUDIES, **{f"p{p}": percentile(beyond, p) for p in (50, 95, 99)}, "most": max(beyond)}
    memory = _memory_of_workers(node)
    save("road", {"seconds_beyond_the_quiet_time": result, "pss_mib": memory})
    with capsys.disabled():
        print(f"\nReport in the PACS, beyond the quiet time: {result}")
        print(f"PSS in MiB: {memory}")


def test_time_to_the_report_at_80_percent_of_what_the_machine_can_do(
    node: Node, pacs: StorageScp, radiographs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _send_and_wait(node, pacs, _new_studies(radiographs["RG3"], tmp_path / "first", 4), gaps=[0.0] * 4)
    burst = _new_studies(radiographs["RG3"], tmp_path / "burst", BURST)
    began, before = time.monotonic(), processor_seconds(node)
    done = _send_and_wait(node, pacs, burst, gaps=[0.0] * BURST)
    spent = {part: 1000 * (seconds - before[part]) / BURST for part, seconds in processor_seconds(node).items()}
    rate = BURST / (max(arrived for _, arrived in done) - began)
    # As people come: at random, one after the other.
    gaps = [random.Random(number).expovariate(LOAD * rate) for number in range(LOADED_STUDIES)]
    sent = _send_and_wait(node, pacs, _new_studies(radiographs["RG3"], tmp_path / "loaded", LOADED_STUDIES), gaps=gaps)
    beyond = [arrived - answered - QUIET_SECONDS for answered, arrived in sent]
    result = {
        "studies_per_second_at_most": rate,
        "load": LOAD,
        "studies": LOADED_STUDIES,
        **{f"p{p}": percentile(beyond, p) for p in (50, 95, 99)},
        "most": max(beyond),
    }
    save("road-loaded", {"seconds_beyond_the_quiet_time": result, "processor_milliseconds_per_study": spent})
    with capsys.disabled():
        print(f"\nReport in the PACS at {LOAD:.0%} load, beyond the quiet time: {result}")
        print(f"Processor time per study, in ms: {spent}")


def _send_and_wait(
    node: Node, pacs: StorageScp, studies: list[tuple[Path, str]], *, gaps: list[float]
) -> list[tuple[float, float]]:
    """Send each study over an association of its own, after its gap; return when it was answered and reported."""
    with ThreadPoolExecutor(4) as senders:
        pending = {}
        due = time.monotonic()
        for (path, study), gap in zip(studies, gaps, strict=True):
            due += gap
            time.sleep(max(0.0, due - time.monotonic()))
            pending[study] = senders.submit(_answered, node, path)
        answered = {study: sending.result() for study, sending in pending.items()}
    arrived: dict[str, float] = {}

    def all_came() -> bool:
        arrived.update((report.study_instance_uid, report.arrived_at) for report in pacs.new_reports())
        return arrived.keys() >= answered.keys()

    wait_until(all_came, seconds=300, what="all reports arrive")
    return [(answered[study], arrived[study]) for study in answered]


def _answered(node: Node, path: Path) -> float:
    outcome = next(outcome for _, outcome in send(node.address, [path], calling_ae_title="BENCH", timeout=60))
    assert outcome.result is Result.DELIVERED
    return time.monotonic()


def _new_studies(source: Path, folder: Path, count: int) -> list[tuple[Path, str]]:
    folder.mkdir()
    return [_new_study(source, folder / f"{number}.dcm") for number in range(count)]


def _report_of(pacs: StorageScp, study: str) -> float | None:
    return next((report.arrived_at for report in pacs.new_reports() if report.study_instance_uid == study), None)


def _new_study(source: Path, path: Path) -> tuple[Path, str]:
    dataset = pydicom.dcmread(source)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path)
    return path, str(dataset.StudyInstanceUID)


def _memory_of_workers(node: Node) -> dict[str, float]:
    """Proportional set size of each part with its children: pages that a child shares with its parent count once."""
    up = next(iter(node._processes.values()))
    parts = {}
    for part in psutil.Process(up.pid).children():
        name = " ".join(part.cmdline()[3:] or part.cmdline())[:40]
        family = [part, *part.children(recursive=True)]
        parts[name] = round(sum(process.memory_full_info().pss for process in family) / 2**20, 1)
    return parts
