"""What a node does on the side, in the sweeper's process, slowly and in small pieces: see `chores`.

It has a thread of its own, so that the sweeper's rounds wait for none of it. Several sweepers do it all several times,
which does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.reconcile import Reconciler
from dicom_node.spool import Spool, SpoolError
from models import logs
from models.database import Database
from models.settings import Settings
from worker.heads import Signer
from worker.retention import Retention
from worker.silence import Watch

# The first pass, when the node starts, is quick: something may have happened to it.
FIRST_PASS_SECONDS = 10.0
PASS_SECONDS = 3600.0
RETENTION_STEP_SECONDS = 1.0
RETENTION_SECONDS = 600.0
AFTER_TROUBLE_SECONDS = 30.0
log = logs.get("housekeeping")


@dataclass
class Chore:
    """Something that is done in steps; each says after how many seconds the next is due."""

    name: str
    step: Callable[[], float]
    due: float = 0.0
    failing: bool = False


def chores(settings: Settings, database: Database, spool: Spool) -> list[Chore]:
    """Return what is to be done: compare spool and record; remove files whose time is over; sign the audit chain; say
    which sources have gone silent."""
    reconciler, retention = Reconciler(settings, database, spool), Retention(settings, database, spool)
    signer, watch = Signer(settings, database), Watch(settings, database)

    def reconcile() -> float:
        share = reconciler.step()
        return (PASS_SECONDS if reconciler.passes else FIRST_PASS_SECONDS) * share

    def retain() -> float:
        return RETENTION_STEP_SECONDS if retention.step() else RETENTION_SECONDS

    return [
        Chore("reconcile", reconcile),
        Chore("retention", retain),
        Chore("audit heads", signer.step),
        Chore("silence", watch.step),
    ]


def keep_house(chores: list[Chore], stop: threading.Event) -> None:
    """Do the chores, each when it is due, until `stop` is set."""
    while not stop.wait(max(0.0, min(chore.due for chore in chores) - time.monotonic())):
        chore = min(chores, key=lambda chore: chore.due)
        try:
            pause = chore.step()
        except (SQLAlchemyError, SpoolError, OSError) as error:
            if not chore.failing:
                log.error("chore failed", chore=chore.name, exc_info=error)
            chore.failing, pause = True, AFTER_TROUBLE_SECONDS
        else:
            chore.failing = False
        chore.due = time.monotonic() + pause
