"""Checks the audit trail for whoever asks on the audit page: one check at a time, in a process of its own.

It goes on when the page is left; everybody who may see it sees how far it is, and what came of it. That it was done,
by whom and with what result is an audit event.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from console import access
from console.access import Action, Person
from console.web import command
from models import audit, clock, logs
from models.audit_check import Fault, Verdict
from models.database import Database
from models.settings import Settings

LONGEST_SECONDS = 3600.0
log = logs.get("web")


@dataclass(frozen=True)
class Check:
    """One check: as long as it goes on it has neither `verdict` nor `trouble`."""

    by: str
    began_at: datetime
    done: int = 0
    """Places of the chain that were looked at …"""
    of: int = 0
    """… of so many; 0 while that is not known."""
    ended_at: datetime | None = None
    verdict: Verdict | None = None
    trouble: str | None = None
    """Why nothing came of it."""


@dataclass
class Verifier:
    """The one check of this process."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _check: Check | None = None

    @property
    def check(self) -> Check | None:
        """The check that goes on, or else the last one."""
        return self._check

    @property
    def is_running(self) -> bool:
        """Whether one goes on."""
        check = self._check
        return check is not None and check.ended_at is None

    def start(self, database: Database, settings: Settings, person: Person) -> threading.Thread | None:
        """Begin to check the trail, where the person may; None where a check goes on already. Raises Denied."""
        access.authorise(database, person, Action.VERIFY_AUDIT, subject="audit")
        with self._lock:
            if self.is_running:
                return None
            self._check = Check(person.name, clock.now())
        thread = threading.Thread(target=self._run, args=(database, settings, person), name="audit-verify", daemon=True)
        thread.start()
        return thread

    def _run(self, database: Database, settings: Settings, person: Person) -> None:
        verdict: Verdict | None = None
        trouble: str | None = None
        try:
            arguments = ["audit", "verify", "--json", "--progress"]
            done = command.run(arguments, settings, seconds=LONGEST_SECONDS, listen=self._listen)
            if done.status in (0, 1):
                verdict = _verdict(json.loads(done.said))
            else:
                trouble = done.complained or "It ended without an answer."
        except command.GaveUp as error:
            trouble = str(error)
        except Exception as error:  # whatever it is: the page must not wait for ever
            log.error("the audit trail was not checked", exc_info=error)
            trouble = "It failed. The node's log says where."
        try:
            _record(database, person, verdict)
        except Exception as error:
            log.error("that the audit trail was checked was not recorded", exc_info=error)
            trouble = "What came of it could not be recorded. The node's log says why."
        self._change(ended_at=clock.now(), verdict=None if trouble else verdict, trouble=trouble)

    def _listen(self, line: str) -> None:
        found = re.fullmatch(r"checked (\d+) of (\d+)", line)
        if found is not None:
            self._change(done=int(found[1]), of=int(found[2]))

    def _change(self, **changes: Any) -> None:
        with self._lock:
            assert self._check is not None  # noqa: S101 (begun before)
            self._check = replace(self._check, **changes)


def _verdict(found: dict[str, Any]) -> Verdict:
    """What `osteon audit verify --json` printed."""
    counts = {name: found[name] for name in ("events", "places", "unchained", "heads", "signed_to", "signed_at")}
    faults = [Fault(fault["what"], fault["place"], fault["event"]) for fault in found["faults"]]
    return Verdict(**counts, faults=faults, more_faults=found["more_faults"], notes=found["notes"])


def _record(database: Database, person: Person, verdict: Verdict | None) -> None:
    details: dict[str, str | int | None] = {"outcome": "not checked"}
    if verdict is not None:
        first = verdict.faults[0] if verdict.faults else None
        details = {
            "outcome": "well" if verdict.well else "broken",
            "events": verdict.events,
            "places": verdict.places,
            "signed_to": verdict.signed_to,
            "faults": len(verdict.faults) + verdict.more_faults,
            "first_place": None if first is None else first.place,
            "first_event": None if first is None else first.event_id,
        }
    with database.write() as session:
        audit.record(session, actor=person.actor, action="audit.verified", subject="audit", subject_id=None, **details)
