"""The parts and the work: who runs, what has waited for too long, and what waits for a person."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from console.doctor.disk import up_runs
from console.doctor.verdict import Finding, warning, well, wrong
from console.health import broker_trouble, listener_trouble, sweeper_trouble
from models import clock
from models.database import Database, DatabaseNotUpgraded, database_url
from models.settings import Settings
from models.silence import Source, in_words, sources
from models.tables import (
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    File,
    Quarantine,
    Study,
    StudyState,
)
from worker.claims import Work, waits_since
from worker.queue import make_app

PARTS, WORK = "parts", "work"
MOST_COUNTED = 1000
_DOES = {
    Work.ANALYSE: ("images wait to be read", "worker"),
    Work.EXAMINE: ("what came again waits to be compared", "worker"),
    Work.REPORT: ("studies wait for their report", "courier"),
    Work.DELIVER: ("reports wait to be sent", "courier"),
    Work.COMMIT: ("senders wait for their storage commitment", "courier"),
}


def look_at_parts(settings: Settings, seconds: float) -> Iterator[Finding]:
    """Ask the listener and the sweeper of this host, and the workers of all hosts."""
    workers = [] if broker_trouble(settings) else _workers(settings, seconds)
    if {"worker", "courier"} - {name.partition("@")[0] for name in workers} and (workers or up_runs(settings)):
        # Busy ones take their time to answer.
        workers = _workers(settings, 2 * seconds) or workers
    found = {
        "listener": listener_trouble(settings) is None,
        "sweeper": sweeper_trouble(settings) is None,
        "worker": any(name.startswith("worker@") for name in workers),
        "courier": any(name.startswith("courier@") for name in workers),
    }
    if not any(found.values()) and not up_runs(settings):
        yield warning(PARTS, "the node does not run on this host", "`osteon up` starts it")
        return
    if workers:
        yield well(PARTS, f"workers that answer: {', '.join(sorted(workers))}")
    for part, runs in found.items():
        if runs and part in ("listener", "sweeper"):
            yield well(PARTS, f"the {part} of this host answers")
        elif not runs and part in ("worker", "courier"):
            what = "images are not read" if part == "worker" else "nothing is reported or sent"
            yield wrong(PARTS, f"no {part} answers: {what}", "start it (`osteon up`); its log says why it ended")
        elif not runs:
            finding = wrong if up_runs(settings) else warning
            todo = (
                "look into the log of `osteon up`" if up_runs(settings) else "it may run on another host; else start it"
            )
            yield finding(PARTS, f"the {part} of this host does not answer", todo)


def _workers(settings: Settings, seconds: float) -> list[str]:
    with make_app(settings) as app:
        return list(app.control.inspect(timeout=seconds).ping() or ())


def look_at_work(settings: Settings) -> Iterator[Finding]:
    """Look for what has waited for longer than `study.warn_after`, for what a person has to decide, and for sources
    that have gone silent."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not (settings.data_dir / "osteon.db").is_file():
        return
    database = Database.of(settings)
    try:
        database.require_upgraded()
        with database.read() as session:
            yield from waiting(session, settings)
            yield from for_a_person(session)
            yield from silent(sources(session, settings))
    except (DatabaseNotUpgraded, SQLAlchemyError):
        return  # the check of the database says so
    finally:
        database.close()


def waiting(session: Session, settings: Settings) -> Iterator[Finding]:
    """Look for work that has waited for too long."""
    limit = timedelta(seconds=settings.study.warn_after)
    late = [work for work in Work if waits_since(session, work, clock.now() - limit)]
    for work in late:
        what, part = _DOES[work]
        said = f"{what}, for more than {limit.total_seconds() / 60:.0f} minutes"
        yield wrong(
            WORK, said, f"does the {part} run, and is there enough of it? `osteon reconcile --missing` lists them"
        )
    if not late:
        yield well(WORK, f"nothing has waited for more than {limit.total_seconds() / 60:.0f} minutes")


def for_a_person(session: Session) -> Iterator[Finding]:
    """Count what waits for a person."""
    asked = (
        (Quarantine.id, Quarantine.resolved_at.is_(None), "in quarantine", "osteon quarantine list"),
        (
            Study.id,
            Study.state == StudyState.NEEDS_ATTENTION,
            "studies need attention",
            "osteon studies --state needs_attention",
        ),
        (
            Delivery.id,
            Delivery.state == DeliveryState.NEEDS_ATTENTION,
            "deliveries need attention",
            "osteon deliveries, then osteon retry",
        ),
        (
            CommitmentRequest.id,
            CommitmentRequest.state == CommitmentRequestState.NEEDS_ATTENTION,
            "storage commitment requests were not answered",
            "osteon deliveries, then osteon retry --request",
        ),
        (
            File.id,
            File.missing_at.is_not(None) & File.removed_at.is_(None),
            "files are gone",
            "osteon reconcile --files",
        ),
    )
    for column, condition, what, command in asked:
        some = select(column).where(condition).limit(MOST_COUNTED).subquery()
        count = session.scalar(select(func.count()).select_from(some)) or 0
        if count:
            more = " or more" if count == MOST_COUNTED else ""
            yield warning(WORK, f"{count}{more} {what}", f"see `{command}`")


def silent(found: list[Source]) -> Iterator[Finding]:
    """Name the sources from which nothing comes although something should."""
    for source in found:
        if source.is_silent and source.heard_at is not None:
            said = f"{source.peer or source.ae_title} has gone silent: {source.why}"
            todo = (
                f"does {source.ae_title} still send to us, and do we let it in (`association rejected` in the log)? "
                "Else set its silent_after"
            )
            yield warning(WORK, f"{said} ({in_words(clock.now() - source.heard_at)} ago)", todo)
