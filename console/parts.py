"""`osteon listen`, `osteon work`, `osteon sweep`: one part of the node each, in the foreground, until SIGTERM."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from console.failures import failing_plainly
from console.health import sweeper_beat
from dicom_node.listener import Listener
from dicom_node.spool import Spool
from models import logs
from models.database import Database
from models.settings import Settings, load_settings
from models.upgrade import require_upgraded
from worker.app import make_app, serve
from worker.bundle import Bundle, default_bundle_path
from worker.claims import Work
from worker.hints import Hints
from worker.sweeper import Sweeper


def listen() -> None:
    """Receive studies: answer C-ECHO and C-STORE."""
    settings = load_settings()
    logs.configure("listener", level=settings.log_level)
    stop = _stop_on_signals()
    with failing_plainly():
        database = _database(settings)
        spool = Spool(settings.data_dir / "spool", min_free_bytes=settings.listener.min_free_bytes)
        hints = Hints(make_app(settings))
        listener = Listener(settings, database, spool, lambda: hints.give(Work.ANALYSE))
        listener.start()
    stop.wait()
    listener.stop()


def work(
    only: Annotated[
        str, typer.Option(help="Kinds of work, separated by commas: analyse, report, deliver.")
    ] = "analyse,report,deliver",
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Child processes.")] = 1,
) -> None:
    """Do the work that waits: analyse images, report studies, deliver reports (a Celery worker)."""
    settings = load_settings()
    works = _works(only)
    part = "worker" if Work.ANALYSE in works else "courier"
    logs.configure(part, level=settings.log_level)
    with failing_plainly():
        _database(settings).close()
        if Work.ANALYSE in works:
            # Refused here, once and with the file named, rather than by every child.
            Bundle.load(settings.model_bundle or default_bundle_path())
    serve(make_app(settings), settings, works, part=part, concurrency=concurrency)


def sweep() -> None:
    """Close quiet studies, and ask for whatever is unfinished."""
    settings = load_settings()
    logs.configure("sweeper", level=settings.log_level)
    stop = _stop_on_signals()
    with failing_plainly():
        database = _database(settings)
    beat = sweeper_beat(settings)
    beat.parent.mkdir(parents=True, exist_ok=True)
    Sweeper(settings, database, Hints(make_app(settings)), alive=beat.touch).run(stop)


def _works(only: str) -> frozenset[Work]:
    try:
        return frozenset(Work(name.strip()) for name in only.split(","))
    except ValueError:
        raise typer.BadParameter(f"{only!r}: allowed are {', '.join(Work)}", param_hint="--only") from None


def _database(settings: Settings) -> Database:
    database = Database.of(settings)
    require_upgraded(database.engine)
    return database


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
