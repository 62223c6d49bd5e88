"""A hospital's day at accelerated time: backlog, waits, answers, and that nothing is lost or refused.

OSTEON_BENCH_DAY_STUDIES (200) and OSTEON_BENCH_DAY_ACCELERATION say how large the day is and by what its times are
divided; by default as many studies come in a second as with 2,000 studies and a minute for each hour. A day that is
accelerated so much that its waits are shorter than the sweeper's half second tests more than it measures.
OSTEON_BENCH_DAY_SEED draws another day; OSTEON_BENCH_DAY_HEAD_START is another `study.urgent_head_start`, in the day's
seconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.settings import StudySettings
from tests.benchmarks.day.course import Hall
from tests.benchmarks.day.figures import of_the_day
from tests.benchmarks.day.schedule import plan
from tests.benchmarks.day.verdict import problems
from tests.benchmarks.results import file_system, save

STUDIES = int(os.environ.get("OSTEON_BENCH_DAY_STUDIES", "200"))
ACCELERATION = float(os.environ.get("OSTEON_BENCH_DAY_ACCELERATION", str(60 * 2000 / STUDIES)))
HEAD_START = float(os.environ.get("OSTEON_BENCH_DAY_HEAD_START", str(StudySettings().urgent_head_start)))
SEED = int(os.environ.get("OSTEON_BENCH_DAY_SEED", "1"))
# Too much for a line.
LONG = ("backlog", "waits", "seconds_waited_beyond_the_quiet_time")

pytestmark = pytest.mark.timeout(3 * 3600)


@pytest.fixture
def hall(tmp_path: Path, test_data: Path) -> Iterator[Hall]:
    made = Hall(tmp_path, test_data, seed=SEED, studies=STUDIES, acceleration=ACCELERATION, head_start=HEAD_START)
    yield made
    made.stop()


def test_a_day_of_a_hospital_leaves_nothing_behind(
    hall: Hall, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nseed {SEED}: {STUDIES} studies in a day that is {ACCELERATION:g} times as short")
    day = plan(SEED, STUDIES)
    course = hall.live()
    found = problems(hall, day, course, SEED)
    result = {
        "file_system": file_system(tmp_path),
        "load": os.getloadavg(),
        "urgent_head_start": HEAD_START,
        "problems": found,
        **of_the_day(hall.node.database, day, course, SEED),
    }
    save("day", result)
    with capsys.disabled():
        print(_table(result))
    assert not found
    # Of what failed, all is kept; else some gigabytes are not.
    hall.stop()
    shutil.rmtree(hall.node.settings.data_dir)


def _table(result: dict[str, Any]) -> str:
    """Lines for people."""
    lines = [json.dumps({name: value for name, value in result.items() if name not in LONG}, indent=1)]
    lines.append("seconds from the last C-STORE answer, beyond the quiet time; studies, p50, p95, p99, most")
    for window, classes in result["seconds_waited_beyond_the_quiet_time"].items():
        for name, kinds in classes.items():
            for what, spread in kinds.items():
                values = "  ".join(f"{value:8.2f}" for key, value in spread.items() if key != "count")
                lines.append(f"{window:14} {name:8} {what:12} {spread['count']:5}  {values}")
    return "\n".join(lines)
