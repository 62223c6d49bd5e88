"""How long what a node does all day takes, from a thousand finished studies to a million, on both databases.

OSTEON_BENCH_STUDIES is the largest size; the default is 100,000, since a million takes eight gigabytes of disk, ten
minutes and more to fill, for each database. A tenth as many images as there are studies wait to be read. What the
database reads is mostly in memory. The least of many tries is compared: what else the machine does only adds to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from models import logs
from models.database import Database, database_url
from models.settings import Settings
from models.upgrade import upgrade
from tests.benchmarks.results import file_system, save, spread
from tests.daily import OPERATIONS, Daily, Operation
from tests.filled import fill
from tests.servers import PostgreSQL, Valkey, given
from worker.hints import Hints
from worker.queue import make_app
from worker.sweeper import Sweeper

LARGEST = int(os.environ.get("OSTEON_BENCH_STUDIES", "100000"))
SIZES = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= LARGEST]
ROUNDS = 15
WARMING_UP = 3
# So much time for each operation at most.
PATIENCE_SECONDS = 20.0

pytestmark = pytest.mark.timeout(4 * 3600)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_times_by_the_number_of_studies(
    kind: str, request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("bench", level="critical")
    milliseconds: dict[str, dict[int, dict[str, float]]] = {}
    filled: dict[int, dict[str, float]] = {}
    for size in SIZES:
        settings, drop = _new(kind, request, valkey, tmp_path / str(size))
        begun = perf_counter()
        fill(database_url(settings), finished=range(1, size + 1), waiting=range(size // 20))
        seconds = perf_counter() - begun
        with closing(Database(database_url(settings))) as database:
            filled[size] = {"seconds": round(seconds, 1), "megabytes": _megabytes(database)}
            for name, taken in _measured(settings, database, size).items():
                milliseconds.setdefault(name, {})[size] = taken
        drop()
        with capsys.disabled():
            print(f"\n{kind}, {size} studies: filled in {seconds:.0f} s, {filled[size]['megabytes']:.0f} MB", end="")
    result: dict[str, Any] = {
        "database": kind,
        "file_system": file_system(tmp_path),
        "load": os.getloadavg(),
        "filled": filled,
        "milliseconds": milliseconds,
    }
    save(f"scale-{kind}", result)
    with capsys.disabled():
        print("\n" + _table(milliseconds))


def _new(
    kind: str, request: pytest.FixtureRequest, valkey: Valkey, folder: Path
) -> tuple[Settings, Callable[[], None]]:
    """Return the settings of a node with an empty database, and what removes it."""
    if kind == "sqlite":
        settings = given(folder, broker_url=valkey.url)
        upgrade(settings)
        return settings, lambda: shutil.rmtree(folder)
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url: URL = server.new_database()
    settings = given(folder, broker_url=valkey.url, database_url=url.render_as_string(hide_password=False))
    upgrade(settings)
    return settings, lambda: server.run(f"DROP DATABASE {url.database}")


def _measured(settings: Settings, database: Database, studies: int) -> dict[str, dict[str, float]]:
    """Return how long each operation takes, in milliseconds."""
    daily = Daily(settings, database, studies)
    app = make_app(settings)
    sweeper = Sweeper(settings, database, Hints(app))
    operations = OPERATIONS | {"sweep: a whole round": lambda _: sweeper.sweep()}
    taken = {name: _timed(operation, daily) for name, operation in operations.items()}
    app.close()
    return taken


def _timed(operation: Operation, daily: Daily) -> dict[str, float]:
    for _ in range(WARMING_UP):
        operation(daily)
    times: list[float] = []
    until = perf_counter() + PATIENCE_SECONDS
    while len(times) < ROUNDS and (perf_counter() < until or not times):
        begun = perf_counter()
        operation(daily)
        times.append(1000 * (perf_counter() - begun))
    return {name: round(value, 3) for name, value in spread(times).items()}


def _megabytes(database: Database) -> float:
    size = "SELECT pg_database_size(current_database())"
    if database.engine.dialect.name == "sqlite":
        size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with database.read() as session:
        return round(session.scalar(text(size)) / 1e6, 1)


def _table(milliseconds: dict[str, dict[int, dict[str, float]]]) -> str:
    """Lines for people: the least milliseconds by size, and those of the largest over those of the smallest."""
    lines = [f"{'milliseconds':38}" + "".join(f"{size:>11,}" for size in SIZES) + "    ratio"]
    for name, by_size in milliseconds.items():
        least = [by_size[size]["least"] for size in SIZES]
        lines.append(f"{name:38}" + "".join(f"{value:11.2f}" for value in least) + f"{least[-1] / least[0]:9.1f}")
    return "\n".join(lines)
