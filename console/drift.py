"""What is said of drift, on the console's page and by `osteon doctor`."""

from __future__ import annotations

from worker.drift import Judged
from worker.shift import Rate

RATES = {"fracture": "Called fracture", "undetermined": "Undetermined", "refused": "Refused by the gate"}


def standing_out(judged: Judged) -> str:
    """Say in sentences what somebody should look at; "" where there is nothing."""
    sentences = []
    for name in judged.flagged:
        if name == "scores":
            sentences.append("The scores are spread otherwise than the release's, whatever the share of fractures.")
        else:
            rate, where = said_rate(judged.counts.rates[name]), judged.rates[name].value
            sentences.append(f"{RATES[name]}: {rate}, {where} the release's band.")
    return " ".join(sentences)


def said_rate(rate: Rate) -> str:
    """A share in percent with its 95 % interval."""
    if rate.value is None:
        return "–"
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
