"""The one clock. Everything that asks for the time asks here, so that a test can set it.

Leases are the exception: they are compared with the database's own time (`models.database.database_now`), because
they are held by processes on several hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_offset: timedelta = timedelta(0)
_frozen: datetime | None = None


def now() -> datetime:
    """Return the current time, timezone-aware, in UTC."""
    return (_frozen or datetime.now(UTC)) + _offset


@contextmanager
def frozen(at: datetime) -> Iterator[None]:
    """Hold the clock at `at` (timezone-aware) inside the block; `advance` still moves it."""
    global _frozen, _offset
    before = (_frozen, _offset)
    _frozen, _offset = at.astimezone(UTC), timedelta(0)
    try:
        yield
    finally:
        _frozen, _offset = before


def advance(by: timedelta) -> None:
    """Move the clock by `by`. For tests."""
    global _offset
    _offset += by
