"""The shipped bundle for tests that have only drawn radiographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from worker.bundle import Bundle, default_bundle_path


def with_open_gate(folder: Path | None = None) -> Bundle:
    """Return the bundle in `folder`, or the shipped one, its gate opened, which else refuses every drawn limb."""
    bundle = Bundle.load(folder or default_bundle_path())
    gate = bundle.card.gate and bundle.card.gate.model_copy(update={"refuse_above": 1e6})
    return replace(bundle, card=bundle.card.model_copy(update={"gate": gate}))
