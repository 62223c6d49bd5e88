"""`osteon sweep`: the sweeper, in the foreground, until SIGTERM."""

from __future__ import annotations

import threading

from console.beat import sweeper_beat
from console.start import failing_plainly, open_database, stop_on_signals
from dicom_node.spool import Spool
from models import logs
from models.settings import load_settings
from worker.hints import Hints
from worker.housekeeping import chores, keep_house
from worker.queue import make_app
from worker.sweeper import Sweeper


def sweep() -> None:
    """Close quiet studies, and ask for whatever is unfinished."""
    settings = load_settings()
    logs.configure("sweeper", level=settings.log_level)
    stop = stop_on_signals()
    with failing_plainly():
        database = open_database(settings)
    beat = sweeper_beat(settings)
    beat.parent.mkdir(parents=True, exist_ok=True)
    house = chores(settings, database, Spool(settings.data_dir / "spool"))
    threading.Thread(target=keep_house, args=(house, stop), name="housekeeping", daemon=True).start()
    Sweeper(settings, database, Hints(make_app(settings)), alive=beat.touch).run(stop)
