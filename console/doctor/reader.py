"""The model: whether the bundle in force is as it was released, and runs here."""

from __future__ import annotations

from collections.abc import Iterator

from console.doctor.verdict import Finding, well, wrong
from models.settings import Settings
from worker.bundle import BundleError, default_bundle_path
from worker.verify import verify

AREA = "model"


def look_at_model(settings: Settings) -> Iterator[Finding]:
    """Check the bundle's sums and its card, and run its model on two drawn images."""
    path = settings.model_bundle or default_bundle_path()
    try:
        found = verify(path)
    except BundleError as error:
        todo = "install the bundle anew, or set model_bundle; no worker starts with this one"
        yield wrong(AREA, f"{path}: {error}", todo)
        return
    card = found.bundle.card
    yield well(AREA, f"{card.name} {card.version} matches its sums and runs, sha256 {found.bundle.sha256[:12]}…")
