"""Runs a command of `osteon` in a process of its own, below the pages in priority: what takes long, or decodes a file.

So a page does what the command does, by the same code, and holds up nobody else's. The process ends with this one, and
at the latest with its time. `python -m console.web.command PARENT …` is that process; the settings come by the
environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass

from models.settings import Settings, environment_of

AT_ONCE = 2
"""Commands that run at the same time; others wait."""
TURN_SECONDS = 30.0
_turns = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    """Its exit status; that of a signal is negative."""
    said: bytes
    """On standard output."""
    complained: str
    """The last line on standard error."""


class GaveUp(Exception):
    """It was not run, or not to its end; the text says why."""


def run(
    arguments: list[str], settings: Settings, *, seconds: float, listen: Callable[[str], None] = lambda _: None
) -> Done:
    """Run it to its end; `listen` gets each line on standard error as it comes. Raises GaveUp."""
    if not _turns.acquire(timeout=TURN_SECONDS):
        raise GaveUp("Others are being served. Try again shortly.")
    try:
        return _run(arguments, settings, seconds, listen)
    finally:
        _turns.release()


def _run(arguments: list[str], settings: Settings, seconds: float, listen: Callable[[str], None]) -> Done:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    last, late = "", threading.Event()
    # A file takes what it says, however much that is, while what it complains of is read.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", "console.web.command", str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.PIPE,
            env={**ours, **environment_of(settings), "NO_COLOR": "1"},
            text=True,
            errors="replace",
        ) as process,
    ):

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        assert process.stderr is not None  # noqa: S101 (asked for above)
        try:
            for line in process.stderr:
                last = line.strip() or last
                listen(last)
            process.wait()
        finally:
            timer.cancel()
            process.kill()
        if late.is_set():
            raise GaveUp(f"It took longer than {seconds:g} seconds, and was given up.")
        said.seek(0)
        return Done(process.returncode, said.read(), last)


def main() -> None:
    """Be that process."""
    from console.main import run as run_osteon
    from worker.lifeline import die_with_parent

    die_with_parent(int(sys.argv.pop(1)))
    os.nice(10)
    run_osteon()


if __name__ == "__main__":
    main()
