"""`osteon up`: everything on this machine, as one process group.

Parts are processes of their own. One that dies is started again, and said so; all of them end when this process
ends, however it ends: on Ctrl-C and SIGTERM within ten seconds and in order, on kill -9 by the kernel.
"""

from __future__ import annotations

import fcntl
import time
from typing import IO

from console.broker import broker_command
from console.start import failing_plainly
from console.supervisor import Supervisor
from models import logs
from models.errors import CannotStart
from models.settings import Settings, load_settings
from models.upgrade import upgrade
from worker.broker import BrokerUnreachable, require_broker
from worker.bundle import Bundle, default_bundle_path

PARTS = {
    "listener": ["listen"],
    "worker": ["work", "--only", "analyse"],
    # Two: one that waits for a slow destination must not hold up the other reports.
    "courier": ["work", "--only", "report,deliver", "--concurrency", "2"],
    "sweeper": ["sweep"],
}
BROKER = "broker"
STOP_SECONDS = 7.0
BROKER_STOP_SECONDS = 2.0
BROKER_START_SECONDS = 10.0
log = logs.get("up")


def up() -> None:
    """Run the whole node on this machine: broker, database, listener, workers, sweeper."""
    settings = load_settings()
    logs.configure("up", level=settings.log_level)
    supervisor = Supervisor(settings, log)
    with failing_plainly():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(settings)
        Bundle.load(settings.model_bundle or default_bundle_path())
        revision = upgrade(settings)
        log.info("starting", data=str(settings.data_dir.absolute()), revision=revision)
    try:
        with failing_plainly():
            if settings.broker_url is None:
                supervisor.add(BROKER, broker_command(settings))
                _wait_for_broker(settings, supervisor)
            for name, arguments in PARTS.items():
                supervisor.add_own(name, *arguments)
            supervisor.run()
    finally:
        supervisor.stop(*PARTS, within=STOP_SECONDS)
        supervisor.stop(within=BROKER_STOP_SECONDS)
        log.info("stopped")
        lock.close()


def _lock(settings: Settings) -> IO[bytes]:
    """Take the data folder for this process; a second `up` would pull the broker's socket from under the first."""
    path = settings.data_dir / "run" / "up.lock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStart(f"another `osteon up` runs on {settings.data_dir.absolute()}") from None
    return lock


def _wait_for_broker(settings: Settings, supervisor: Supervisor) -> None:
    """Return when the broker answers, or when asked to stop. Raises BrokerUnreachable."""
    until = time.monotonic() + BROKER_START_SECONDS
    while not supervisor.stopping:
        try:
            require_broker(settings)
        except BrokerUnreachable:
            if time.monotonic() > until or supervisor.has_died(BROKER):
                raise
            time.sleep(0.05)
        else:
            return
