"""What was looked at, how it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Standing(StrEnum):
    """How something is. What is wrong keeps the node from its work, or endangers what it holds."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and in plain words what to do about it."""

    area: str
    standing: Standing
    said: str
    todo: str = ""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"area": self.area, "standing": self.standing.value, "said": self.said, "todo": self.todo}


def well(area: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(area, Standing.OK, said)


def warning(area: str, said: str, todo: str) -> Finding:
    """The node works; somebody should look at this."""
    return Finding(area, Standing.WARNING, said, todo)


def wrong(area: str, said: str, todo: str) -> Finding:
    """The node does not do what it should, or what it holds is in danger."""
    return Finding(area, Standing.WRONG, said, todo)
