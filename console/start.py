"""How a part starts: a signal that ends it, a database of the right version, and plain words when it cannot."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import SQLAlchemyError

from console.trouble import of_database
from models import logs
from models.database import Database
from models.errors import CannotStart
from models.settings import Settings

log = logs.get("start")


@contextmanager
def failing_plainly() -> Iterator[None]:
    """Turn what an administrator can mend into a log line and exit status 1."""
    try:
        yield
    except CannotStart as error:
        log.error("not started", why=str(error))
    except SQLAlchemyError as error:
        log.error("not started", why="the database does not answer", exc_info=error)
    except OSError as error:
        log.error("not started", why=error.strerror or type(error).__name__)
    else:
        return
    raise typer.Exit(1)


@contextmanager
def saying_plainly() -> Iterator[None]:
    """Do the same for a command that a person runs: a sentence on stderr, and exit status 1."""
    try:
        yield
    except CannotStart as error:
        why = str(error)
    except SQLAlchemyError as error:
        why = f"the database cannot be used: {of_database(error)} (`osteon doctor` says more)"
    except BrokenPipeError:
        raise  # whoever read what we print has seen enough
    except OSError as error:
        why = f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}"
    else:
        return
    typer.echo(f"osteon: {why}", err=True)
    raise typer.Exit(1)


def open_database(settings: Settings) -> Database:
    """Open the record. Raises DatabaseNotUpgraded."""
    database = Database.of(settings)
    database.require_upgraded()
    return database


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
