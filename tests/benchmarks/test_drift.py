"""How long the figures of drift take to count with a million predictions, on both databases.

OSTEON_BENCH_STUDIES is the number of studies, of two predictions each; the default is 50,000 for a look, 500,000 makes
the million: a thousand a day, of which 26 weeks are counted.
"""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time

import pytest
from sqlalchemy import func, select

from models import clock, logs
from models.database import Database, database_url
from models.tables import ModelVersion, Prediction
from models.upgrade import upgrade
from tests.benchmarks.results import save, spread
from tests.filled import A_STUDY_EVERY, BEGINNING, fill
from tests.servers import PostgreSQL, given
from worker.drift import LONGEST_WEEKS, drift

STUDIES = int(os.environ.get("OSTEON_BENCH_STUDIES", "50000"))
ROUNDS = 5

pytestmark = pytest.mark.timeout(4 * 3600)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_counting_takes_seconds_with_a_million_predictions(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("bench", level="critical")
    if kind == "sqlite":
        settings = given(tmp_path / "node")
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        settings = given(tmp_path / "node", database_url=server.new_database().render_as_string(hide_password=False))
    upgrade(settings)
    fill(database_url(settings), finished=range(1, STUDIES + 1), waiting=range(30))
    now = datetime.fromtimestamp(BEGINNING + STUDIES * A_STUDY_EVERY, UTC) + timedelta(hours=1)
    seconds: dict[str, dict[str, float]] = {}
    with closing(Database.of(settings)) as database, clock.frozen(now):
        for weeks in (4, LONGEST_WEEKS):
            wall, processor = [], []
            for _ in range(ROUNDS):
                begun, began = perf_counter(), process_time()
                with database.read() as session:
                    version = session.scalars(select(ModelVersion)).one()
                    (found,) = drift(session, version, weeks=weeks)
                wall.append(perf_counter() - begun)
                processor.append(process_time() - began)
            counted = sum(week.read for week in found.of(None))
            seconds[f"{weeks} weeks"] = {"counted": counted, **spread(wall)}
            seconds[f"{weeks} weeks, processor"] = spread(processor)
        with database.read() as session:
            predictions = session.scalar(select(func.count()).select_from(Prediction))
    result = {
        "predictions": predictions,
        "scanners": len(found.by_scanner),
        "seconds": seconds,
        "load": os.getloadavg(),
    }
    save(f"drift-{kind}", result)
    with capsys.disabled():
        print(f"\n{kind}: {result}")
