"""What tests look up in the bundle that is shipped."""

from __future__ import annotations

from worker.bundle import Bundle, Card, default_bundle_path
from worker.drift import baseline_of
from worker.shift import Spread


def shipped_card() -> Card:
    """Its card."""
    return Bundle.load(default_bundle_path()).card


def shipped_spread() -> Spread:
    """How the scores of its test images are spread."""
    card = shipped_card()
    baseline = baseline_of(card.metrics, card.findings[0].code.value)
    assert baseline is not None
    assert baseline.spread is not None
    return baseline.spread
