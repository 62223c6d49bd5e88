"""What group commit is worth: many small images over eight associations, beside a commit for each of them, in one run.

Run it on a machine that does nothing else: eight senders and the listener share its processors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import event

from dicom_node.group_commit import GroupCommit
from dicom_node.headers import SourceHeader
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.listener import Listener
from dicom_node.spool import Spool
from models.database import Database
from models.settings import Peer, Settings
from tests.benchmarks.results import file_system, save, spread
from tests.peers import require_peer
from tests.phantom import limb
from tests.radiographs import radiograph

ROUNDS = 5
SENDERS = 8
INSTANCES = 30
"""That each sender sends in a round, of 9 kB each; every sender's are a study."""

pytestmark = pytest.mark.timeout(900)


class CommitForEach(GroupCommit):
    """What stood before: every connection thread commits its own, beside the others."""

    def record(self, sender: Sender, header: SourceHeader, stored: StoredFile) -> Receipt:
        with self._database.write() as session:
            return self._intake.write(session, sender, header, stored)


@pytest.fixture
def small(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"peers": [Peer(name="bench", ae_title="BENCH", role="source")], "log_level": "warning", "port": 0}
    )


def test_receive_rate_with_group_commit_beside_a_commit_for_each(
    small: Settings, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways: dict[str, type[GroupCommit]] = {"grouped": GroupCommit, "each": CommitForEach}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    per_commit: dict[str, list[float]] = {name: [] for name in ways}
    commits = _counted(database)
    for number in range(ROUNDS):
        # The way that goes first changes, so that a machine that gets slower is fair to both.
        for name in sorted(ways, reverse=bool(number % 2)):
            folders = _instances(tmp_path / f"{number}-{name}", round_number=2 * number + (name == "each"))
            with _listener(small, database, tmp_path, ways[name]) as port:
                commits.clear()
                rates[name].append(_rate(folders, port))
            per_commit[name].append(SENDERS * INSTANCES / len(commits))
    ratios = [grouped / each for grouped, each in zip(rates["grouped"], rates["each"], strict=True)]
    kind = database.engine.dialect.name
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, Any] = {
        "database": kind,
        "file_system": file_system(tmp_path),
        "instances_per_second": {name: spread(values) for name, values in rates.items()},
        "instances_per_commit": {name: spread(values) for name, values in per_commit.items()},
        "grouped_over_each": spread(ratios),
    }
    save(f"group-commit-{kind}", result)
    with capsys.disabled():
        print(
            f"\n{kind}: grouped {medians['grouped']:.1f}/s ({statistics.median(per_commit['grouped']):.1f} a commit), "
            f"each {medians['each']:.1f}/s; × {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} rounds)"
        )


def _instances(folder: Path, *, round_number: int) -> list[Path]:
    """Return a folder for each sender, with instances that were never sent before."""
    folders = []
    for sender in range(SENDERS):
        study = f"1.2.826.0.1.{round_number + 1}.{sender + 1}"
        target = folder / str(sender)
        target.mkdir(parents=True)
        for number in range(INSTANCES):
            made = radiograph(
                limb(72, 60),
                patient_id=f"P{sender}",
                study_uid=study,
                series_uid=f"{study}.1",
                sop_instance_uid=f"{study}.1.{number + 1}",
                instance_number=number + 1,
            )
            made.save_as(target / f"{number}.dcm", enforce_file_format=True)
        folders.append(target)
    return folders


@contextmanager
def _listener(settings: Settings, database: Database, folder: Path, way: type[GroupCommit]) -> Iterator[int]:
    listener = Listener(settings, database, Spool(folder / "node" / "spool"), lambda: None)
    listener._storage._recorder = way(database, Intake(database, settings))
    listener.start()
    try:
        yield listener.port
    finally:
        listener.stop()


def _rate(folders: list[Path], port: int) -> float:
    """Send all folders side by side; return instances per second."""
    command = [str(require_peer("storescu")), "-aet", "BENCH", "-aec", "OSTEON", "127.0.0.1", str(port)]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    begun = perf_counter()
    senders = [subprocess.Popen([*command, *map(str, sorted(folder.iterdir()))], env=environment) for folder in folders]
    assert [sender.wait() for sender in senders] == [0] * SENDERS
    return SENDERS * INSTANCES / (perf_counter() - begun)


def _counted(database: Database) -> list[None]:
    """Return a list that grows with each transaction that is committed after writing."""
    commits: list[None] = []
    lock = threading.Lock()

    def note(connection: Any) -> None:
        if connection.get_execution_options().get("osteon_write"):
            with lock:
                commits.append(None)

    event.listen(database.engine, "commit", note)
    return commits
