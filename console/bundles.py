"""Which bundle a person means."""

from __future__ import annotations

from pathlib import Path

from models.settings import Settings
from worker.bundle import default_bundle_path


def folder_of(which: str | None, settings: Settings) -> Path:
    """Return the folder that is meant, whether it is there or not."""
    if which is None:
        return settings.model_bundle or default_bundle_path()
    shipped = default_bundle_path().parent / which
    return shipped if shipped.is_dir() and not Path(which).is_dir() else Path(which)
