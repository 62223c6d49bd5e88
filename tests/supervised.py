"""The `osteon` command line with two more commands: one that supervises parts, and a part that says how it began."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from console import main
from console.fork import BecamePart
from console.supervisor import Supervisor
from models import logs
from models.settings import load_settings

COMMANDS = {"probe": "tests.supervised:probe", "supervise": "tests.supervised:supervise"}
SUPERVISORS: list[int] = []
"""In a process that is a copy of a supervisor, its process id."""


def probe(into: Path, *, status: Annotated[int, typer.Option()] = 0, stay: bool = False) -> None:
    """Write what a process finds when it begins into a new file of the folder `into`."""
    settings = load_settings()
    logs.configure("probe", level="info")
    found = {
        "settings": settings.model_dump(mode="json"),
        "environment": dict(os.environ),
        "arguments": sys.argv[1:],
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "handlers": {int(number): str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGCHLD)},
        "files": sorted(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()),
        "input": os.readlink("/proc/self/fd/0"),
        "threads": threading.active_count(),
        "collects": gc.isenabled(),
        "copy_of": SUPERVISORS,
        "command": Path("/proc/self/cmdline").read_bytes().decode().replace("\0", " ").strip(),
    }
    logs.get("probe").info("probed")
    path = into / f"{os.getpid()}.json"
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").rename(path)
    if stay:
        signal.pause()
    raise typer.Exit(status)


def supervise(part: list[str], *, thread: bool = False) -> None:
    """Keep this part running; where asked, beside a thread."""
    settings = load_settings()
    logs.configure("supervisor", level="info")
    SUPERVISORS.append(os.getpid())
    supervisor = Supervisor(settings, logs.get("supervisor"))
    # What is the supervisor's own, and has to be closed in the part.
    lock = (settings.data_dir / "lock").open("wb")
    if thread:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    try:
        supervisor.add_own("probe", *part)
        supervisor.run()
    except BecamePart:
        lock.close()
        raise
    supervisor.stop(within=5)
    logs.get("supervisor").info("stopped")


if __name__ == "__main__":
    main.COMMANDS |= COMMANDS
    # By the name under which the command line loads it, so that both see the same list.
    sys.modules["tests.supervised"] = sys.modules["__main__"]
    main.run()
