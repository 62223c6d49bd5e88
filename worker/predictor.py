"""Reads one image with one bundle: pixels in, a decision for each finding out.

A predictor belongs to one process: load it in the worker's child, not before the fork.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from dicom_node.objects.content import Decision
from dicom_node.pixels import ModelInput
from worker.bundle import Bundle, Finding, OperatingPoints
from worker.network import Network
from worker.regions import Point, Region, Scores, locate

__all__ = ["FindingReading", "Point", "Predictor", "Reading", "Region", "decide"]


@dataclass(frozen=True)
class FindingReading:
    """What the model says about one finding in one image.

    Attributes
    ----------
    code_value, code_scheme, code_meaning
        The finding, as the bundle's card codes it.
    logit
        The network's own output, kept so that another calibration can be tried later.
    probability
        Calibrated, 0 to 1.
    decision
        From the bundle's operating points.
    threshold, absent_below
        The operating points used: present from `threshold`, absent below `absent_below`.
    region, peak
        Where the score map is highest, whatever the decision; None when the bundle has no heatmap.
    """

    code_value: str
    code_scheme: str
    code_meaning: str
    logit: float
    probability: float
    decision: Decision
    threshold: float
    absent_below: float
    region: Region | None = None
    peak: Point | None = None


@dataclass(frozen=True)
class Reading:
    """What the model says of one image.

    Attributes
    ----------
    findings
        All of them, in the card's order.
    milliseconds
        How long the network took, its map's peaks and regions included.
    distance
        How far the image's features lie from training's, from 0 on; None when the bundle has no gate.
    unfamiliar
        Whether that is farther than the card's gate lets pass. The findings then mean nothing and must not be shown:
        they are here only so that the gate itself can be measured.
    heatmaps
        The score map of each finding, shape (h, w), 0 to 1; empty when the bundle has no heatmap.
    """

    findings: tuple[FindingReading, ...]
    milliseconds: float
    distance: float | None = None
    unfamiliar: bool = False
    heatmaps: tuple[Scores, ...] = field(default=(), repr=False, compare=False)


class Predictor:
    """A loaded bundle. Not for several threads at once: the interpreter has one set of tensors."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 1) -> None:
        """Raises BundleError when the model cannot be run or does not fit its card."""
        self.bundle = bundle
        self._card = bundle.card
        self._size = (bundle.card.input.rows, bundle.card.input.columns)
        self._network = Network(bundle, num_threads=num_threads)

    @classmethod
    def load(cls, path: Path, *, num_threads: int = 1) -> Self:
        """Check the bundle in the folder `path` and load its model. Raises BundleError."""
        return cls(Bundle.load(path), num_threads=num_threads)

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) to ask `dicom_node.pixels.model_input` for."""
        return self._size

    def read(self, image: ModelInput) -> Reading:
        """Run the model on one input.

        Raises
        ------
        ValueError
            The input has another size than the bundle's.
        ArithmeticError
            An output of the model is not what it can be (a finite number, a score of 0 to 1), so that it says nothing.
        """
        if image.pixels.shape != self._size:
            raise ValueError(f"The input is {image.pixels.shape}, the bundle wants {self._size}.")
        start = time.perf_counter()
        found = self._network.run(image.pixels)
        findings = tuple(_reading(finding, float(found.logits[finding.output])) for finding in self._card.findings)
        heatmaps: tuple[Scores, ...] = ()
        if found.scores is not None and self._card.heatmap is not None:
            heatmaps = tuple(found.scores[:, :, finding.output] for finding in self._card.findings)
            share = self._card.heatmap.region_share
            places = [locate(heatmap, image, share) for heatmap in heatmaps]
            findings = tuple(
                replace(reading, peak=peak, region=region)
                for reading, (peak, region) in zip(findings, places, strict=True)
            )
        return Reading(
            findings,
            milliseconds=(time.perf_counter() - start) * 1000,
            distance=found.distance,
            unfamiliar=self._is_unfamiliar(found.distance),
            heatmaps=heatmaps,
        )

    def _is_unfamiliar(self, distance: float | None) -> bool:
        gate = self._card.gate
        return gate is not None and distance is not None and distance > gate.refuse_above


def _reading(finding: Finding, logit: float) -> FindingReading:
    probability = finding.calibration.probability(logit)
    return FindingReading(
        code_value=finding.code.value,
        code_scheme=finding.code.scheme,
        code_meaning=finding.code.meaning,
        logit=logit,
        probability=probability,
        decision=decide(probability, finding.operating_points),
        threshold=finding.operating_points.present_from,
        absent_below=finding.operating_points.absent_below,
    )


def decide(probability: float, points: OperatingPoints) -> Decision:
    """Turn a calibrated probability into a decision: between the two operating points it stays undetermined."""
    if probability >= points.present_from:
        return "fracture"
    if probability < points.absent_below:
        return "no_fracture"
    return "undetermined"
