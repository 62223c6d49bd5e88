"""How a reading is put into words on a picture, in a presentation state and in a note. The report has its own."""

from __future__ import annotations

from dicom_node.objects.content import FRACTURE, Decision, FindingOutcome

_OF_A_FRACTURE: dict[Decision, str] = {
    "fracture": "Fracture found",
    "no_fracture": "No fracture found",
    "undetermined": "Undetermined",
}
_OF_OTHERS: dict[Decision, str] = {"fracture": "present", "no_fracture": "absent", "undetermined": "undetermined"}


def decision(reading: FindingOutcome) -> str:
    """The decision, as "Fracture found" or "Dislocation: absent"."""
    if reading.code == FRACTURE:
        return _OF_A_FRACTURE[reading.decision]
    return f"{reading.code.meaning}: {_OF_OTHERS[reading.decision]}"


def certainty(reading: FindingOutcome) -> str:
    """The certainty of the finding in whole per cent; never 0 or 100, since a model is never certain."""
    if reading.probability > 0.99:
        return "> 99 %"
    return "< 1 %" if reading.probability < 0.01 else f"{100 * reading.probability:.0f} %"


def is_present(reading: FindingOutcome) -> bool:
    """Whether the finding is there: only then anything marks a place on the image."""
    return reading.decision == "fracture"
