"""The worker: prefork children of Celery that do the work.

A task has no argument that matters and keeps no result: it claims the most urgent row of its kind and does that.
Children open their own database and load the model themselves, since neither survives a fork. A child that is ready
gives a hint for each of its kinds of work: what waited while nobody could do it is begun at once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from celery import Celery, signals

from dicom_node.spool import Spool
from models import audit, logs
from models.database import Database
from models.settings import Settings
from worker.activation import in_force, stamp
from worker.analyse import Analyst, Reader
from worker.bundle import Bundle
from worker.claims import Work, time_limit
from worker.examine import Examiner
from worker.hints import Hints, task_name
from worker.isolation import GRACE_SECONDS, Isolation, limit_memory
from worker.lifeline import die_with_parent
from worker.predictor import Predictor

if TYPE_CHECKING:
    from worker.deliver import Courier
    from worker.desk import Desk
    from worker.report import Reporter

# What a child gets to end what it runs beside the tasks.
STOP_SECONDS = 4.0
LOOK_SECONDS = 2.0
"""How long a model may go on reading after another was activated."""
log = logs.get("worker")


class Worker:
    """One child process: what it needs for the kinds of work that it does."""

    def __init__(self, settings: Settings, app: Celery, works: frozenset[Work], bundle: Bundle) -> None:
        self.settings = settings
        self.database = Database.of(settings)
        self.hints = Hints(app)
        self._analyst: Analyst | None = None
        # By the courier too: a report is bound to a model version even where no image could be analysed.
        models = in_force(settings, self.database, bundle, audit.part_actor("worker"))
        self._stamp, self._looked_at = models.stamp, time.monotonic()
        self._examiner: Examiner | None = None
        spool = Spool(settings.data_dir / "spool")
        if Work.ANALYSE in works or Work.EXAMINE in works:
            self._examiner = Examiner(settings, self.database, spool)
            if Work.ANALYSE in works:
                isolation = Isolation.of(settings)
                reader = Reader(Predictor(models.active), models.active_id)
                shadow = None
                if models.shadow is not None and models.shadow_id is not None:
                    shadow = Reader(Predictor(models.shadow), models.shadow_id)
                self._analyst = Analyst(settings, self.database, spool, reader, shadow=shadow, isolation=isolation)
        self._reporter: Reporter | None = None
        self._courier: Courier | None = None
        self._desk: Desk | None = None
        # What these need takes longer to import than all the rest, and who reads images should begin soon.
        if Work.REPORT in works:
            from worker.report import Reporter

            self._reporter = Reporter(settings, self.database, spool)
        if Work.DELIVER in works:
            from worker.deliver import Courier

            self._courier = Courier(settings, self.database)
        if Work.COMMIT in works:
            from worker.commit import Committer
            from worker.desk import Desk

            self._desk = Desk(Committer(settings, self.database), time_limit(Work.COMMIT, settings))

    @property
    def hangs(self) -> bool:
        """Whether this process should end: what it began for storage commitment takes longer than it may."""
        return self._desk is not None and self._desk.hangs

    @property
    def is_outdated(self) -> bool:
        """Whether another model is to read since this process loaded its own; looked up every few seconds."""
        if self._analyst is None or time.monotonic() - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = time.monotonic()
        with self.database.read() as session:
            return stamp(session) != self._stamp

    @property
    def out_of_memory(self) -> bool:
        """Whether this process got no memory once, and should end: nobody knows what else it did not get."""
        return any(reader is not None and reader.out_of_memory for reader in (self._analyst, self._examiner))

    def do(self, work: Work) -> bool:
        """Do one piece of work, if there is one; pass a hint on where that makes more work.

        To deliver is to start the lanes that there are to start; they run on beside other work, and so does storage
        commitment.
        """
        if work is Work.ANALYSE and self._analyst is not None:
            return self._analyst.analyse_next()
        if work is Work.EXAMINE and self._examiner is not None:
            return self._examiner.examine_next()
        if work is Work.REPORT and self._reporter is not None:
            done = self._reporter.report_next()
            if done and self.settings.destinations:
                self.hints.give(Work.DELIVER)
            return done
        if work is Work.COMMIT and self._desk is not None:
            return self._desk.attend()
        if work is Work.DELIVER and self._courier is not None:
            return self._courier.start_lanes() > 0
        raise RuntimeError(f"this worker was not started to {work.value}")

    def stop(self) -> None:
        """End what runs beside the tasks. Bounded."""
        until = time.monotonic() + STOP_SECONDS
        if self._desk is not None:
            self._desk.close()
        if self._courier is not None:
            self._courier.stop()
        if self._desk is not None and not self._desk.wait(until - time.monotonic()):
            log.warning("commitment left behind: it is asked again")


def serve(
    app: Celery, settings: Settings, works: frozenset[Work], bundle: Bundle, *, part: str, concurrency: int
) -> None:
    """Run a Celery worker for these kinds of work in this process until it is told to stop."""
    children: list[Worker] = []
    parent = os.getpid()

    @signals.worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def start_child(**_: object) -> None:
        die_with_parent(parent)
        logs.configure(part, level=settings.log_level)
        if Work.ANALYSE in works or Work.EXAMINE in works:
            limit_memory(settings.analysis.memory_limit)
        try:
            children.append(Worker(settings, app, works, bundle))
        except Exception as error:
            # Celery would swallow it. The first hint tries again, and says so again.
            log.error("worker not ready", exc_info=error)
        else:
            for work in works:
                children[0].hints.give(work)

    @signals.worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def stop_child(**_: object) -> None:
        for child in children:
            child.stop()

    @signals.setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def keep_our_log(**_: object) -> None:
        """Celery sets up no logging of its own where this signal has a receiver."""

    if Work.REPORT in works:
        # Here, so that the children share it.
        import worker.report  # noqa: F401
    for work in works:
        _add_task(app, work, children, lambda: Worker(settings, app, works, bundle), _killed_after(work, settings))
    app.Worker(
        hostname=f"{part}@{socket.gethostname()}",
        queues=[work.value for work in sorted(works)],
        concurrency=concurrency,
        pool="prefork",
        without_gossip=True,
        without_mingle=True,
        # Heartbeats are for those who watch Celery's events, and no event is sent: `osteon health` pings.
        without_heartbeat=True,
        optimization="fair",
        quiet=True,
    ).start()


def _killed_after(work: Work, settings: Settings) -> timedelta:
    """How long Celery lets a task run. An image's own limit is kept by the kernel, and one read alone has to begin."""
    if work is Work.ANALYSE:
        return Isolation.of(settings).longest + timedelta(seconds=GRACE_SECONDS)
    return time_limit(work, settings)


def _add_task(
    app: Celery, work: Work, children: list[Worker], make_child: Callable[[], Worker], limit: timedelta
) -> None:
    @app.task(name=task_name(work), ignore_result=True, time_limit=limit.total_seconds())  # type: ignore[untyped-decorator]
    def run() -> None:
        try:
            if not children:
                children.append(make_child())
            outdated = children[0].is_outdated
            if not outdated:
                children[0].do(work)
        except Exception as error:
            # Celery would log the exception's text. The row's lease runs out, and the sweeper asks for it again.
            log.error("work not done", work=work.value, exc_info=error)
            return
        if outdated:
            # The one that takes its place gives the hint again that is not followed here.
            log.info("another model reads from now on, another process takes the place of this one")
            raise SystemExit(0)
        if children[0].out_of_memory:
            log.warning("this process got no memory, another takes its place")
            raise SystemExit(0)
        if children[0].hangs:
            log.error("storage commitment hangs, another process takes the place of this one")
            raise SystemExit(0)
