"""`osteon health PART`: whether a part on this host does its work; for container health checks.

These ask every part once a minute or so, for as long as a node runs: each imports only what its question needs.
"""

from __future__ import annotations

import socket
import time
from enum import StrEnum
from typing import Annotated

import typer

from console.beat import sweeper_beat
from models import logs
from models.settings import Settings, load_settings

# The sweeper beats every half second; a slow database may hold it up for a while.
SWEEPER_LATE_SECONDS = 30
PING_SECONDS = 5


class Part(StrEnum):
    """What can be asked for its health."""

    LISTENER = "listener"
    WORKER = "worker"
    COURIER = "courier"
    SWEEPER = "sweeper"
    WEB = "web"
    DATABASE = "database"
    BROKER = "broker"


def health(
    part: Annotated[
        Part,
        typer.Argument(help="The part to ask.", metavar="PART"),
    ],
) -> None:
    """Say whether a part on this host does its work (exit status 0) or what is wrong with it (1)."""
    settings = load_settings()
    logs.configure("health", level="error")
    trouble = _CHECKS[part](settings)
    print(f"{part.value}: {trouble or 'healthy'}")
    raise typer.Exit(1 if trouble else 0)


def listener_trouble(settings: Settings) -> str | None:
    """Ask this host's listener by C-ECHO; return what is wrong, or None."""
    from dicom_node.sender import Destination, Result, echo
    from dicom_node.tls import Expected, TlsError, own_pin

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    own = Destination(settings.ae_title, host, settings.port)
    if settings.tls.only and settings.tls.port is not None:
        try:
            ourselves = Expected(settings.tls, settings.ae_title, (own_pin(settings.tls),))
        except TlsError as error:
            return str(error)
        own = Destination(settings.ae_title, host, settings.tls.port, ourselves)
    outcome = echo(own, calling_ae_title=settings.ae_title, timeout=PING_SECONDS)
    return None if outcome.result is Result.DELIVERED else outcome.reason


def worker_trouble(settings: Settings, part: str) -> str | None:
    """Ping this host's Celery worker."""
    if trouble := broker_trouble(settings):
        return trouble
    from worker.queue import make_app

    node = f"{part}@{socket.gethostname()}"
    with make_app(settings) as app:
        answers = app.control.inspect(destination=[node], timeout=PING_SECONDS).ping()
    return None if answers and node in answers else "no answer"


def sweeper_trouble(settings: Settings) -> str | None:
    """Look at when the sweeper's last round was."""
    try:
        late = time.time() - sweeper_beat(settings).stat().st_mtime
    except FileNotFoundError:
        return "never ran on this host"
    return None if late < SWEEPER_LATE_SECONDS else f"silent for {late:.0f} s"


def web_trouble(settings: Settings) -> str | None:
    """Ask this host's console whether it is ready for people."""
    from http.client import HTTPConnection, HTTPException

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.web.host, settings.web.host)  # noqa: S104
    connection = HTTPConnection(host, settings.web.port, timeout=PING_SECONDS)
    try:
        connection.request("GET", "/_stcore/health")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"no answer ({type(error).__name__})"
    finally:
        connection.close()
    return None if status == 200 else f"answers with status {status}"


def database_trouble(settings: Settings) -> str | None:
    """Ask the database for the revision of its tables."""
    from sqlalchemy.exc import SQLAlchemyError

    from models.database import Database, DatabaseNotUpgraded

    database = Database.of(settings)
    try:
        database.require_upgraded()
    except DatabaseNotUpgraded as error:
        return str(error)
    except SQLAlchemyError as error:
        return f"no answer ({type(error).__name__})"
    finally:
        database.close()
    return None


def broker_trouble(settings: Settings) -> str | None:
    """Ping the broker."""
    from worker.broker import BrokerUnreachable, require_broker

    try:
        require_broker(settings)
    except BrokerUnreachable as error:
        return str(error)
    return None


_CHECKS = {
    Part.LISTENER: listener_trouble,
    Part.WORKER: lambda settings: worker_trouble(settings, "worker"),
    Part.COURIER: lambda settings: worker_trouble(settings, "courier"),
    Part.SWEEPER: sweeper_trouble,
    Part.WEB: web_trouble,
    Part.DATABASE: database_trouble,
    Part.BROKER: broker_trouble,
}
