"""`osteon listen`: the listener, in the foreground, until SIGTERM; as several processes on one port where asked."""

from __future__ import annotations

from typing import Annotated

import typer

from console.start import failing_plainly, open_database, stop_on_signals
from console.supervisor import Supervisor
from dicom_node.listener import Listener
from dicom_node.network.connections import require_free
from dicom_node.spool import Spool
from models import logs
from models.settings import Settings, load_settings
from worker.claims import Work
from worker.hints import Hints
from worker.queue import make_app

STOP_SECONDS = 5.0
# Less than a worker takes to read the image before.
HINT_SECONDS = 0.05
log = logs.get("listener")


def listen(*, one: Annotated[bool, typer.Option("--one", hidden=True)] = False) -> None:
    """Receive studies: answer C-ECHO and C-STORE."""
    settings = load_settings()
    logs.configure("listener", level=settings.log_level)
    if settings.listener.processes > 1 and not one:
        _listen_together(settings)
        return
    stop = stop_on_signals()
    with failing_plainly():
        database = open_database(settings)
        spool = Spool(
            settings.data_dir / "spool",
            min_free_bytes=settings.listener.min_free_bytes,
            min_free_percent=settings.listener.min_free_percent,
        )
        hints = Hints(make_app(settings), pause=HINT_SECONDS)
        listener = Listener(settings, database, spool, lambda: hints.give(Work.ANALYSE))
        listener.start()
    stop.wait()
    listener.stop()


def _listen_together(settings: Settings) -> None:
    """Run the listeners that share the port, each a process: Python serves one association at a time in each."""
    supervisor = Supervisor(settings, log)
    with failing_plainly():
        open_database(settings).close()
        tls = settings.tls
        for port in (None if tls.only else settings.port, tls.port):
            if port is not None:
                # Ours share a port among them, and would share it with another node unnoticed.
                require_free(settings.host, port)
    try:
        for number in range(settings.listener.processes):
            supervisor.add_own(f"listener {number + 1}", "listen", "--one")
        supervisor.run()
    finally:
        supervisor.stop(within=STOP_SECONDS)
