"""A modality's sending queue over DCMTK's storescu: what was not answered with success is sent again."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from tests.faults.chaos.instances import Instance
from tests.peers import require_peer

PER_ASSOCIATION = 8
PAUSE, PAUSE_AFTER_FAILURE = 0.15, 0.4
_ANSWER = re.compile(
    r"C-STORE RSP$.*?Affected SOP Instance UID\s*: (?P<uid>[0-9.]+)$.*?DIMSE Status\s*: 0x(?P<status>[0-9a-f]{4})",
    re.DOTALL | re.MULTILINE,
)


class Modality(threading.Thread):
    """Sends over one association at a time until its queue is empty.

    Attributes
    ----------
    acknowledged
        SOP Instance UIDs that were answered with 0x0000.
    given_up
        Those of `once` that were not, and were not sent a second time.
    statuses
        How often each status was the answer.
    """

    def __init__(
        self,
        ae_title: str,
        port: int,
        queue: list[Instance],
        *,
        log: Path,
        once: Set[str] = frozenset(),
        where: Sequence[str] = (),
    ) -> None:
        """`once`: what is sent a single time; `where`: a command to run storescu by."""
        super().__init__(name=f"{ae_title}-{port}", daemon=True)
        self._where = where
        self._ae_title, self._port, self._log = ae_title, port, log
        self._queue, self._once = list(queue), once
        self._told = threading.Event()
        self._storescu = require_peer("storescu")
        self.acknowledged: set[str] = set()
        self.given_up: set[str] = set()
        self.statuses: Counter[int] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send until all is sent."""
        try:
            while self._queue and not self._told.is_set():
                self._told.wait(PAUSE if self._send(self._queue[:PER_ASSOCIATION]) else PAUSE_AFTER_FAILURE)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Send nothing more."""
        self._told.set()

    def _send(self, batch: list[Instance]) -> bool:
        """Send over one association; return whether all arrived."""
        begun = time.strftime("%H:%M:%S")
        program = [*self._where, str(self._storescu), "-d", "-nh", "-R", "-xe"]
        titles = ["-aet", self._ae_title, "-aec", "OSTEON"]
        times = ["-to", "5", "-ts", "15", "-ta", "15", "-td", "20"]
        done = subprocess.run(
            [*program, *titles, *times, "127.0.0.1", str(self._port), *(str(instance.path) for instance in batch)],
            capture_output=True,
            timeout=120,
            check=False,
        )
        answers = {found["uid"]: int(found["status"], 16) for found in _ANSWER.finditer(done.stdout.decode("latin-1"))}
        answers |= {found["uid"]: int(found["status"], 16) for found in _ANSWER.finditer(done.stderr.decode("latin-1"))}
        self.statuses.update(answers.values())
        stored = {uid for uid, status in answers.items() if status == 0}
        self.acknowledged |= stored
        tried = {instance.sop_instance_uid for instance in batch}
        self.given_up |= (tried & self._once) - stored
        done_with = stored | self.given_up
        self._queue = [instance for instance in self._queue if instance.sop_instance_uid not in done_with]
        with self._log.open("a") as log:
            log.write(f"{begun} {self._ae_title}: {len(stored)} of {len(batch)} stored, exit {done.returncode}\n")
        return tried <= stored
