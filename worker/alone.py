"""One image in a process of its own: `python -m worker.alone`, as `worker.isolation` starts it.

It does the whole work itself, result included, under the token of the claim it was given. Only row ids and numbers are
passed on; the settings come by the environment, as from `osteon up`.
"""

from __future__ import annotations

import os
import sys

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.spool import Spool
from models import logs
from models.database import Database
from models.settings import Settings, load_settings
from worker.activation import active
from worker.analyse import Analyst, Reader
from worker.bundle import BundleError
from worker.claims import Claim, Work
from worker.isolation import READY, TROUBLE_STATUS, Isolation, limit_memory
from worker.lifeline import die_with_parent
from worker.predictor import Predictor

log = logs.get("alone")


def main(arguments: list[str]) -> int:
    """Analyse one image: the starter's process id, the image's row, its token, its tries."""
    parent, row_id, token, tries = map(int, arguments)
    die_with_parent(parent)
    # Decoders may print: what is read at the other end is one byte of ours.
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = load_settings()
    logs.configure("worker", level=settings.log_level)
    isolation = Isolation.of(settings)
    limit_memory(settings.analysis.memory_limit)
    try:
        analyst = _analyst(settings)
    except (SQLAlchemyError, OSError, BundleError) as error:
        log.error("not ready", exc_info=error)
        return TROUBLE_STATUS
    os.write(pipe, READY)
    with isolation.alarm():
        analyst.analyse(Claim(Work.ANALYSE, row_id, token, tries, isolation.limit))
    return TROUBLE_STATUS if analyst.owes else 0


def _analyst(settings: Settings) -> Analyst:
    """Without a shadow: nothing that is not needed runs beside an image that may be harmful."""
    database = Database.of(settings)
    bundle, version_id = active(settings, database)
    reader = Reader(Predictor(bundle), version_id)
    return Analyst(settings, database, Spool(settings.data_dir / "spool"), reader)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
