"""Has an untrusted file read in a process of its own, within limits of time and memory; nothing of it is kept.

What comes back is checked before it is used: a file may have got the better of the process that read it.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_node.objects.content import Decision
from models import logs
from models.reasons import Reason
from models.settings import Settings, environment_of

AT_ONCE = 2
TURN_SECONDS = 60.0
START_SECONDS = 60.0
_COMMAND = [sys.executable, "-m", "console.web.one_file"]
_turns = threading.BoundedSemaphore(AT_ONCE)
log = logs.get("web")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FoundOne(_Part):
    """What the model said of one finding; `box` is (xmin, ymin, xmax, ymax) in source pixels."""

    meaning: Annotated[str, Field(max_length=64)]
    probability: Annotated[float, Field(ge=0, le=1)]
    decision: Decision
    absent_below: Annotated[float, Field(ge=0, le=1)]
    present_from: Annotated[float, Field(ge=0, le=1)]
    box: tuple[float, float, float, float] | None


class Answer(_Part):
    """What came of a file."""

    kind: Literal["picture", "DICOM"]
    decision: Decision | Literal["not_analysed"]
    reason: Reason | None
    milliseconds: float | None
    findings: list[FoundOne]
    rows: int | None
    columns: int | None
    radiograph: str | None
    heat: str | None
    report: str | None

    def bytes_of(self, part: Literal["radiograph", "heat", "report"]) -> bytes | None:
        """Return the file of a part, where there is one: JPEG, PNG and DICOM."""
        encoded = getattr(self, part)
        return None if encoded is None else base64.b64decode(encoded, validate=True)


@dataclass(frozen=True)
class Unread:
    """Nothing came of the file; `sentence` says why, for people."""

    sentence: str


def read(content: bytes, settings: Settings, installation_uid: str) -> Answer | Unread:
    """Have one file read. Never raises because of what is in it."""
    limit = settings.web.max_upload_mb
    if len(content) > limit * 1024 * 1024:
        return Unread(f"The file is larger than {limit} MB.")
    if not content:
        return Unread("The file is empty.")
    if not _turns.acquire(timeout=TURN_SECONDS):
        return Unread("Other files are being read. Try again shortly.")
    try:
        return _read(content, settings, installation_uid)
    finally:
        _turns.release()


def _read(content: bytes, settings: Settings, installation_uid: str) -> Answer | Unread:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    seconds = settings.analysis.time_limit
    try:
        done = subprocess.run(
            [*_COMMAND, str(os.getpid()), installation_uid],
            input=content,
            stdout=subprocess.PIPE,
            env={**ours, **environment_of(settings)},
            timeout=START_SECONDS + seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Unread(f"The file was given up: reading it took longer than {seconds:g} seconds.")
    if done.returncode != 0:
        log.error("a tried file took its process with it", status=done.returncode)
        return Unread("The file was given up: its reader ran out of time or memory, or broke down on it.")
    try:
        return Answer.model_validate_json(done.stdout)
    except ValidationError:
        log.error("a tried file's reader said nothing that can be used")
        return Unread("The file was given up: its reader said nothing that can be used.")
