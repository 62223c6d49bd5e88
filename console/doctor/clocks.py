"""The clock of this host, and those of the sources as far as what they sent tells."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from console.doctor.verdict import Finding, warning, well
from models import clock
from models.database import Database, DatabaseNotUpgraded, database_url
from models.settings import Settings
from models.tables import Study

AREA = "clock"
# adjtimex(2): the clock is not kept by anybody.
_TIME_ERROR = 5
_SIZE_OF_TIMEX = 512
# A day begins so much earlier in Kiribati than in UTC.
_EARLIEST_ZONE = timedelta(hours=14)


def look_at_clock(settings: Settings) -> Iterator[Finding]:
    """Ask the kernel whether the clock is kept, and compare what sources last sent with when it came."""
    local = clock.now().astimezone()
    said = f"{local.strftime('%Y-%m-%d %H:%M:%S')} in the local time zone {local.tzname()} (UTC{local.strftime('%z')})"
    yield well(AREA, f"{said}; record and logs are in UTC")
    kept = is_kept()
    if kept is False:
        todo = "run chrony or systemd-timesyncd; a virtual machine whose host keeps its clock may do without"
        yield warning(AREA, "the kernel says that nobody keeps this host's clock", todo)
    elif kept:
        yield well(AREA, "kept by NTP, or another source of time")
    yield from _sources(settings)


def is_kept() -> bool | None:
    """Return whether the kernel's clock is synchronised; None where it does not say."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):
        return None
    state: int = libc.adjtimex(ctypes.create_string_buffer(_SIZE_OF_TIMEX))  # all modes 0: it only reads
    return None if state < 0 else state != _TIME_ERROR


def _sources(settings: Settings) -> Iterator[Finding]:
    """An association tells no time; a study that is dated after the day on which it came does."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not (settings.data_dir / "osteon.db").is_file():
        return
    database = Database.of(settings)
    try:
        database.require_upgraded()
        with database.read() as session:
            for peer in settings.sources:
                newest = session.scalars(
                    select(Study)
                    .where(Study.calling_ae_title == peer.ae_title)
                    .order_by(Study.first_image_at.desc(), Study.id.desc())
                    .limit(1)
                ).first()
                if newest is not None and newest.study_date > f"{newest.first_image_at + _EARLIEST_ZONE:%Y%m%d}":
                    said = f"{peer.name} dates its newest study later than the day on which it came"
                    yield warning(AREA, said, f"set the clock of {peer.name}, or ask who enters its dates")
    except (DatabaseNotUpgraded, SQLAlchemyError):
        return  # the check of the database says so
    finally:
        database.close()
