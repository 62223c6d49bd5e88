"""What stops a part from starting, in one plain line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import SQLAlchemyError

from models import logs
from models.upgrade import DatabaseNotUpgraded
from worker.broker import BrokerUnreachable
from worker.bundle import BundleError

log = logs.get("start")


@contextmanager
def failing_plainly() -> Iterator[None]:
    """Turn what an administrator can mend into a log line and exit status 1."""
    try:
        yield
    except (BundleError, DatabaseNotUpgraded) as error:
        log.error("not started", why=str(error))
    except BrokerUnreachable as error:
        log.error("not started", why=f"the broker does not answer ({error})")
    except SQLAlchemyError as error:
        log.error("not started", why="the database does not answer", exc_info=error)
    except OSError as error:
        log.error("not started", why=error.strerror or type(error).__name__)
    else:
        return
    raise typer.Exit(1)
