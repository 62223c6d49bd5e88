"""What it takes to check a long audit trail, and to find something in it: time and memory by the number of events.

OSTEON_BENCH_EVENTS is the larger size (a million); a tenth of it is measured too. The check runs as a process of its
own, as people run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import insert

from models import logs
from models.append_only import protect
from models.audit import GENESIS, content_hash
from models.audit_search import Search, search
from models.database import Database, database_url
from models.settings import Settings, environment_of
from models.tables import AuditChain, AuditEvent
from models.upgrade import upgrade
from tests.benchmarks.results import save, spread
from tests.servers import PostgreSQL, given
from worker.heads import Signer

EVENTS = int(os.environ.get("OSTEON_BENCH_EVENTS", "1000000"))
BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)
AT_ONCE = 10_000
ROUNDS = 15
KINDS = ("image.received", "image.analysed", "report.created", "report.delivery")
RARE = "study.viewed"
SEARCHES = {
    "newest": Search(),
    "a rare kind": Search(action=RARE),
    "a person": Search(actor="dr 7"),
    "a kind on a day": Search(
        action=KINDS[1], since=BEGINNING + timedelta(days=1), before=BEGINNING + timedelta(days=2)
    ),
    "all of a part": Search(actor="worker@*"),
}

pytestmark = pytest.mark.timeout(4 * 3600)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_checking_and_searching_by_the_number_of_events(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("bench", level="critical")
    result: dict[str, Any] = {"database": kind, "load": os.getloadavg()}
    for events in (EVENTS // 10, EVENTS):
        settings = _settings(kind, request, tmp_path / str(events))
        upgrade(settings)
        with closing(Database(database_url(settings))) as database:
            fill(database, events)
            Signer(settings, database).step()
            found = {name: _searched(database, wanted) for name, wanted in SEARCHES.items()}
        verdict, seconds, megabytes = _verified(settings)
        assert verdict["well"], verdict
        result[str(events)] = {
            "verify_seconds": seconds,
            "verify_events_a_second": round(events / seconds),
            "verify_peak_megabytes": megabytes,
            "search_milliseconds": found,
        }
        with capsys.disabled():
            print(f"\n{kind}, {events} events: {json.dumps(result[str(events)])}", end="")
    save(f"audit-{kind}", result)


def _settings(kind: str, request: pytest.FixtureRequest, folder: Path) -> Settings:
    if kind == "sqlite":
        return given(folder)
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return given(folder, database_url=server.new_database().render_as_string(hide_password=False))


def fill(database: Database, events: int) -> None:
    """Write a trail whose hashes are right."""
    previous = GENESIS
    for start in range(1, events + 1, AT_ONCE):
        rows, places = [], []
        for number in range(start, min(start + AT_ONCE, events + 1)):
            row = _event(number)
            at = row["at"].isoformat()
            digest = content_hash(
                previous, number, at, row["actor"], row["action"], row["subject"], row["subject_id"], row["details"]
            )
            rows.append(row)
            places.append({"seq": number, "event_id": number, "previous_hash": previous, "hash": digest})
            previous = digest
        with database.write() as session:
            if session.connection().dialect.name == "sqlite":
                # The guards look for each key; they are put back below.
                for table in ("audit_events", "audit_chain"):
                    session.connection().exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_no_replace")
            session.execute(insert(AuditEvent), rows)
            session.execute(insert(AuditChain), places)
    with database.engine.begin() as connection:
        protect(connection)
        connection.exec_driver_sql("ANALYZE" if connection.dialect.name == "postgresql" else "SELECT 1")
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('audit_events', 'id'), {events})")


def _event(number: int) -> dict[str, Any]:
    rare = number % 20_000 == 0
    return {
        "id": number,
        "at": BEGINNING + timedelta(seconds=20 * number),
        "actor": f"dr {number // 20_000 % 10}"
        if rare
        else f"{('listener', 'worker')[number % 2]}@host:{number // 100_000}",
        "action": RARE if rare else KINDS[number % 4],
        "subject": "study" if rare else "image",
        "subject_id": number,
        "details": {"sha256": f"{number:064d}", "calling_ae_title": "ROOM1"},
    }


def _searched(database: Database, wanted: Search) -> dict[str, float]:
    def once() -> float:
        begun = perf_counter()
        with database.read() as session:
            search(session, wanted)
        return 1000 * (perf_counter() - begun)

    once()
    return spread([once() for _ in range(ROUNDS)])


def _verified(settings: Settings) -> tuple[dict[str, Any], float, float]:
    """Run `osteon audit verify`; return what it found, its seconds, and the most memory it had in megabytes."""
    begun = perf_counter()
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    with subprocess.Popen(
        [sys.executable, "-m", "console", "audit", "verify", "--json"],
        env=ours | environment_of(settings),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        peak = _watched(process.pid, process.stdout.read)
        process.wait()
    return json.loads(peak[0]), round(perf_counter() - begun, 1), peak[1]


def _watched(pid: int, work: Callable[[], str]) -> tuple[str, float]:
    """Return what `work` gives, and the most memory that the process had meanwhile."""
    most, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
            most[0] = max([most[0], *(kilobytes / 1024 for kilobytes in found)])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        said = work()
    finally:
        stop.set()
        looking.join()
    return said, round(most[0], 1)
