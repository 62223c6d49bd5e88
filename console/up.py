"""`osteon up`: everything on this machine, as one process group.

Parts are processes of their own, by fork: what they share is imported once, here (`console.fork`). The worker comes
first, since it has most to do before it can read an image; what only the others need is imported while it does that.
One that dies is started again, and said so; all of them end when this process ends, however it ends: on Ctrl-C and
SIGTERM within ten seconds and in order, on kill -9 by the kernel.
"""

from __future__ import annotations

import fcntl
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import IO

from console.broker import broker_command
from console.start import failing_plainly
from console.supervisor import Supervisor
from console.web.serve import is_installed as web_is_installed
from models import logs
from models.current import upgrade_where_needed
from models.errors import CannotStart
from models.settings import Settings, load_settings
from worker.broker import BrokerUnreachable, require_broker


@dataclass(frozen=True)
class _Part:
    """A command of ours, and what is imported before it is started."""

    arguments: Sequence[str]
    imports: Sequence[str]
    after: float = 0.0
    """Seconds until it is started, so that it does not hold up the others."""


# In the order in which they are started. LiteRT is not among the imports: it is loaded where it runs.
PARTS = {
    "worker": _Part(
        ["work", "--only", "analyse"],
        [
            "console.work",
            # Celery loads by name, when a worker starts: here it serves both.
            "celery.app.control",
            "celery.concurrency.prefork",
            "celery.worker.components",
            "celery.worker.consumer",
        ],
    ),
    "listener": _Part(["listen"], ["console.listen"]),
    "sweeper": _Part(["sweep"], ["console.sweep"]),
    # Two: one that waits for a slow destination must not hold up the other reports.
    "courier": _Part(
        ["work", "--only", "report,deliver", "--concurrency", "2"], ["worker.report", "worker.deliver", "worker.commit"]
    ),
    # What it imports is its own alone, and as much as that of all others.
    "web": _Part(["web"], [], after=5.0),
}
BROKER = "broker"
STOP_SECONDS = 7.0
BROKER_STOP_SECONDS = 2.0
BROKER_START_SECONDS = 10.0
log = logs.get("up")


def up() -> None:
    """Run the whole node on this machine: broker, database, listener, workers, sweeper, console."""
    # What is imported stays: looking through it for garbage takes a tenth of the time to start.
    gc.disable()
    settings = load_settings()
    logs.configure("up", level=settings.log_level)
    supervisor = Supervisor(settings, log)
    with failing_plainly():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(settings)
    try:
        with failing_plainly():
            _start(settings, supervisor)
        gc.enable()
        supervisor.run()
    finally:
        if not supervisor.became_part:
            supervisor.stop(*PARTS, within=STOP_SECONDS)
            supervisor.stop(within=BROKER_STOP_SECONDS)
            log.info("stopped")
        # The parts have to let go of it too.
        lock.close()


def _start(settings: Settings, supervisor: Supervisor) -> None:
    if settings.broker_url is None:
        supervisor.add(BROKER, broker_command(settings))
    revision = upgrade_where_needed(settings)
    log.info("starting", data=str(settings.data_dir.absolute()), revision=revision)
    for name, part in PARTS.items():
        if name == "web" and not (settings.web.enabled and web_is_installed()):
            continue
        for module in part.imports:
            import_module(module)
        if name == "worker" and settings.broker_url is None:
            _wait_for_broker(settings, supervisor)
        if supervisor.stopping:
            return
        supervisor.add_own(name, *part.arguments, after=part.after)
        if name == "worker":
            # The worker looks too, before it reads anything: it need not wait for this.
            _require_bundle(settings)


def _require_bundle(settings: Settings) -> None:
    """Raise BundleError where the model is not as it was released."""
    from worker.bundle import Bundle, default_bundle_path

    Bundle.load(settings.model_bundle or default_bundle_path())


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
