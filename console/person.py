"""Who runs a command, for the audit trail."""

from __future__ import annotations

import getpass
import os
import socket

LONGEST = 128


def person(by: str | None = None) -> str:
    """Return a name that was given, else login name and host; a number for a user without a name, as in a container."""
    if by is not None and by.strip():
        return by.strip()[:LONGEST]
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:LONGEST]
