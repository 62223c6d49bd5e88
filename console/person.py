"""Who runs a command, for the audit trail."""

from __future__ import annotations

import getpass
import os
import socket

LONGEST = 128


def person() -> str:
    """Return login name and host; the number of a user without a name, as in a container."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:LONGEST]
