"""All checks at once, each for as long as it may take: one that hangs, such as a name server, holds up no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from console.doctor.verdict import Finding, wrong
from models import logs

log = logs.get("doctor")


@dataclass(frozen=True)
class Check:
    """What is looked at under one name; it gives its findings one by one, as far as it comes."""

    area: str
    look: Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Round:
    """What all checks found, in their order."""

    findings: list[Finding]
    cut_off: bool
    """Whether one had not ended, so that its thread still waits for something."""


def go_round(checks: Sequence[Check], *, seconds: float) -> Round:
    """Do all checks at once, and wait for them for so long."""
    until = time.monotonic() + seconds
    lookers = [_Looker(check) for check in checks]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join(max(0.0, until - time.monotonic()))
    findings: list[Finding] = []
    cut_off = False
    for looker in lookers:
        late = looker.is_alive()
        cut_off |= late
        findings += looker.found[:]
        if late:
            said = f"did not end within {seconds:g} seconds"
            findings.append(
                wrong(looker.check.area, said, "something that it asks hangs: ask once more, then look there")
            )
    return Round(findings, cut_off)


class _Looker(threading.Thread):
    """Daemonic: the command ends although a check does not."""

    def __init__(self, check: Check) -> None:
        super().__init__(name=check.area, daemon=True)
        self.check = check
        self.found: list[Finding] = []

    def run(self) -> None:
        try:
            for finding in self.check.look():
                self.found.append(finding)
        except Exception as error:
            log.error("check failed", check=self.check.area, exc_info=error)
            said = f"the check itself failed ({logs.describe(error)})"
            self.found.append(
                wrong(self.check.area, said, "this is a mistake in Osteon: please report it with this line")
            )
