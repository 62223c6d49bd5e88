"""`osteon listen`: the listener, in the foreground, until SIGTERM."""

from __future__ import annotations

from console.start import failing_plainly, open_database, stop_on_signals
from dicom_node.listener import Listener
from dicom_node.spool import Spool
from models import logs
from models.settings import load_settings
from worker.claims import Work
from worker.hints import Hints
from worker.queue import make_app


def listen() -> None:
    """Receive studies: answer C-ECHO and C-STORE."""
    settings = load_settings()
    logs.configure("listener", level=settings.log_level)
    stop = stop_on_signals()
    with failing_plainly():
        database = open_database(settings)
        spool = Spool(
            settings.data_dir / "spool",
            min_free_bytes=settings.listener.min_free_bytes,
            min_free_percent=settings.listener.min_free_percent,
        )
        hints = Hints(make_app(settings))
        listener = Listener(settings, database, spool, lambda: hints.give(Work.ANALYSE))
        listener.start()
    stop.wait()
    listener.stop()
