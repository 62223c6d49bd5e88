"""The one clock, which tests can set."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from models import clock

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def test_the_time_is_now_and_in_utc() -> None:
    before = datetime.now(UTC)
    now = clock.now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


def test_a_frozen_clock_stands_until_it_is_advanced() -> None:
    with clock.frozen(NEW_YEAR):
        assert clock.now() == clock.now() == NEW_YEAR
        clock.advance(timedelta(seconds=90))
        assert clock.now() == NEW_YEAR + timedelta(seconds=90)


def test_it_runs_again_after_the_block_even_when_the_block_fails() -> None:
    with suppress(RuntimeError), clock.frozen(NEW_YEAR):
        clock.advance(timedelta(days=1000))
        raise RuntimeError
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_moment_of_another_zone_is_given_in_utc() -> None:
    with clock.frozen(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))):
        assert clock.now() == NEW_YEAR
        assert clock.now().tzinfo is UTC


def test_no_part_of_the_node_asks_another_clock_for_the_date() -> None:
    asking = re.compile(r"datetime\.now\(|datetime\.utcnow\(|datetime\.today\(|date\.today\(")
    rooms = ("models", "dicom_node", "worker", "console")
    found = [
        str(path.relative_to(ROOT))
        for room in rooms
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != ROOT / "models" / "clock.py" and asking.search(path.read_text("utf-8"))
    ]
    assert found == []
