"""How a bundle is written: its files, and their sums as `sha256sum` writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from worker.bundle import CARD, MODEL, SUMS, Card


def written(folder: Path, model: bytes, card: Card, pictures: dict[str, bytes] | None = None) -> Path:
    """Write a bundle into a new folder; return the folder."""
    folder.mkdir(parents=True)
    contents = {CARD: (card.model_dump_json(indent=2) + "\n").encode(), MODEL: model, **(pictures or {})}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    (folder / SUMS).write_text("".join(sums), encoding="ascii")
    return folder
