"""Images that take their process with them, and workers that stand still: real processes, real signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from dicom_node.headers import read_header
from dicom_node.intake import Intake, Sender, StoredFile
from dicom_node.spool import Spool
from dicom_node.wrap import wrap_picture
from models.tables import (
    Attempt,
    File,
    FileKind,
    Image,
    ImageState,
    Prediction,
    Report,
    ReportInput,
    Study,
    StudyState,
)
from tests.faults.poisoned import CRASHES, EATS, HANGS, LEASE_SECONDS, SLOW, SLOW_SECONDS
from tests.rows import Rows
from tests.servers import Node, wait_until

pytest.importorskip("ai_edge_litert")

from tests import litert

ROOM = Sender("room", "ROOM", "OSTEON", "10.0.0.1")
HEALTHY = 480
TRIES = 2  # the first in the worker's child, the second alone
SECONDS = 240.0  # of patience: a quiet machine needs a tenth
pytestmark = pytest.mark.timeout(2 * SECONDS)
ANALYSIS = {"max_tries": TRIES, "first_wait": 0.2, "longest_wait": 0.5, "time_limit": 5, "memory_limit": 1024**3}


sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)


@dataclass
class Site(Rows):
    """A node without a listener, and its workers."""

    node: Node
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = self.node.database

    def receive(self, study: str, *heights: int) -> None:
        """Keep and record a study's images, of these heights, as the listener does."""
        spool = Spool(self.node.settings.data_dir / "spool")
        intake = Intake(self.node.database, self.node.settings)
        for number, rows in enumerate(heights, start=1):
            dataset = wrap_picture(
                litert.white_square((125, 205, 145, 225)).crop((0, 0, 240, rows)),
                patient_id="P",
                patient_name="P",
                study_uid=study,
                series_uid=f"{study}.3",
                sop_instance_uid=f"{study}.4.{number}",
                body_part="WRIST",
                instance_number=number,
            )
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            key, sha256 = spool.put_bytes(buffer.getvalue())
            stored = StoredFile(key, buffer.tell(), sha256, 0, str(dataset.file_meta.TransferSyntaxUID))
            intake.record(ROOM, read_header(dataset), stored)
        intake.close(ROOM.uid, "released")

    def start_worker(self) -> subprocess.Popen[bytes]:
        with self.node.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.poisoned"],
                env=self.node.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(process)
        return process

    def stop(self) -> None:
        for process in self.workers:
            for number in (signal.SIGCONT, signal.SIGKILL):
                os.killpg(process.pid, number)
            process.wait()


@pytest.fixture
def make_site(make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**analysis: float) -> Site:
        litert.predictor(tmp_path / "bundle")
        limits = {**ANALYSIS, **analysis}
        node = make_node(study={"quiet_time": 0.5}, analysis=limits, model_bundle=tmp_path / "bundle")
        node.start("sweep")
        sites.append(Site(node))
        return sites[-1]

    yield make
    for made in sites:
        made.stop()


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_an_image_that_crashes_hangs_or_eats_memory_fails_after_its_tries_and_holds_up_nothing(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    poisons = {"1.1": CRASHES, "1.2": HANGS, "1.3": EATS}
    for study, rows in poisons.items():
        site.receive(study, HEALTHY, rows, HEALTHY)
    site.receive("1.4", HEALTHY, HEALTHY)
    site.start_worker()

    def reported() -> bool:
        return all(study.state is StudyState.REPORTED for study in site.all(Study))

    wait_until(reported, seconds=SECONDS, what="every study is reported")
    images = site.all(Image)
    poisoned = [image for image in images if image.sop_instance_uid in {f"{study}.4.2" for study in poisons}]
    harmless = [image for image in images if image not in poisoned]
    assert [(image.state, image.reason, image.tries) for image in poisoned] == [
        (ImageState.FAILED, "failed", TRIES)
    ] * len(poisons)
    assert {(image.state, image.tries) for image in harmless} == {(ImageState.ANALYSED, 1)}
    assert sorted(made.image_id for made in site.all(Prediction)) == [image.id for image in harmless]
    # The first try took the worker's child with it; each further one took a process of its own.
    errors = {image.id: [made.error for made in site.all(Attempt) if made.image_id == image.id] for image in poisoned}
    crashed, hung, ate = errors.values()
    assert crashed == ["signal_11"] * (TRIES - 1)
    assert hung == ["time_limit"] * (TRIES - 1)
    assert len(ate) == TRIES
    assert all(error.startswith("MemoryError at poisoned.py:") for error in ate)
    assert [line for line in site.node.log_lines() if line["event"].startswith("this process got no memory")]
    # And the reports say so.
    assert len(site.all(Report)) == 4
    assert {(given.image_id, given.reason) for given in site.all(ReportInput)} == {
        (image.id, "failed" if image in poisoned else None) for image in images
    }
    reports = {report.study_id: report.impression for report in site.all(Report)}
    assert [reports[study.id] for study in site.all(Study)] == ["undetermined"] * 3 + ["no_fracture"]


def test_a_worker_that_stood_still_for_longer_than_its_lease_cannot_write_when_it_comes_back(
    make_site: Callable[..., Site],
) -> None:
    # So long that its alarm does not end it.
    site = make_site(time_limit=300)
    site.receive("1.1", SLOW)
    still = site.start_worker()
    wait_until(lambda: site.all(Image)[0].lease_holder, seconds=SECONDS, what="the image is claimed")
    time.sleep(1)  # it is being read
    family = [psutil.Process(still.pid), *psutil.Process(still.pid).children(recursive=True)]
    for process in family:
        process.suspend()
    began = time.monotonic()
    site.start_worker()

    wait_until(lambda: site.all(Image)[0].state is ImageState.ANALYSED, seconds=SECONDS, what="another has read it")
    (image,), (prediction,) = site.all(Image), site.all(Prediction)
    assert (image.tries, image.lease_token) == (2, 2)
    assert time.monotonic() - began > SLOW_SECONDS
    for process in reversed(family):
        process.resume()

    def lost() -> list[dict[str, Any]]:
        return [line for line in site.node.log_lines() if line["event"] == "lease lost"]

    (said,) = wait_until(lost, seconds=SECONDS, what="the one that stood still has come to its end")
    assert said["image"] == image.id
    assert said["part"] == f"worker-{still.pid}"
    assert [made.id for made in site.all(Prediction)] == [prediction.id]
    assert [file.id for file in site.all(File) if file.kind is FileKind.MODEL_INPUT] == [prediction.input_file_id]
    assert site.all(Attempt) == []


@sqlite_alone
def test_what_a_killed_worker_held_is_read_by_another_once_its_lease_is_over_however_long_it_then_takes(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(time_limit=300)
    site.receive("1.1", SLOW)
    killed = site.start_worker()
    wait_until(lambda: site.all(Image)[0].lease_holder, seconds=SECONDS, what="the image is claimed")
    os.killpg(killed.pid, signal.SIGKILL)
    began = time.monotonic()
    site.start_worker()
    wait_until(lambda: site.all(Image)[0].tries > 1, seconds=SECONDS, what="it is claimed again")
    assert time.monotonic() - began < 20 * LEASE_SECONDS, "and not after the time limit of the work"
    wait_until(lambda: site.all(Image)[0].state is ImageState.ANALYSED, seconds=SECONDS, what="another has read it")
    # That took longer than a lease lasts, and another process of the worker's was idle.
    assert site.all(Image)[0].tries == 2
