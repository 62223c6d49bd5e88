"""The sweeper's sign of life."""

from __future__ import annotations

import socket
from pathlib import Path

from models.settings import Settings


def sweeper_beat(settings: Settings) -> Path:
    """Return the file that this host's sweeper touches after each round."""
    return settings.data_dir / "run" / f"sweeper-{socket.gethostname()}"
