"""Reads one image with one bundle: pixels in, a decision for each finding out.

The model runs in LiteRT with XNNPACK: it starts in a fraction of a second and needs a fraction of TensorFlow's memory.
A predictor belongs to one process: load it in the worker's child, not before the fork.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from dicom_node.objects.content import Decision
from dicom_node.pixels import ModelInput
from worker.bundle import MODEL, Bundle, BundleError, Finding, OperatingPoints

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter


class Point(NamedTuple):
    """In source pixels; 0.0, 0.0 is the top left corner of the top left pixel (PS3.3 C.18.6)."""

    x: float
    y: float


class Region(NamedTuple):
    """A closed outline in source pixels; its last point is joined to its first."""

    outline: tuple[Point, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The smallest upright box around it: xmin, ymin, xmax, ymax."""
        xs, ys = [point.x for point in self.outline], [point.y for point in self.outline]
        return min(xs), min(ys), max(xs), max(ys)


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
        Where; None when the bundle does not say where.
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
    """All findings of one image, in the card's order, and how long the network took."""

    findings: tuple[FindingReading, ...]
    milliseconds: float


class Predictor:
    """A loaded bundle. Not for several threads at once: the interpreter has one set of tensors."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 1) -> None:
        """Raises BundleError when the model cannot be run or does not fit its card."""
        self.bundle = bundle
        self._size = (bundle.card.input.rows, bundle.card.input.columns)
        self._interpreter = _interpreter(bundle, num_threads)
        self._input, self._output = _checked_tensors(self._interpreter, bundle)

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
            The model's output is not finite, so that it says nothing.
        """
        if image.pixels.shape != self._size:
            raise ValueError(f"The input is {image.pixels.shape}, the bundle wants {self._size}.")
        start = time.perf_counter()
        self._interpreter.set_tensor(self._input, image.pixels[np.newaxis, :, :, np.newaxis].astype(np.float32))
        self._interpreter.invoke()
        logits = self._interpreter.get_tensor(self._output)[0]
        if not np.isfinite(logits).all():
            raise ArithmeticError("The model's output is not a finite number.")
        milliseconds = (time.perf_counter() - start) * 1000
        findings = tuple(_reading(finding, float(logits[finding.output])) for finding in self.bundle.card.findings)
        return Reading(findings, milliseconds)


def _interpreter(bundle: Bundle, num_threads: int) -> Interpreter:
    # Imported here, so that other rooms can import this file without the libraries that only a reader needs.
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=bundle.model, num_threads=num_threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{MODEL}: cannot be loaded ({type(error).__name__})") from None
    return interpreter


def _checked_tensors(interpreter: Interpreter, bundle: Bundle) -> tuple[int, int]:
    """Return the indices of the model's one input and one output, once their shapes are those of the card."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(f"{MODEL}: has {len(inputs)} inputs and {len(outputs)} outputs instead of one each")
    expected = [1, bundle.card.input.rows, bundle.card.input.columns, 1]
    shape = [int(length) for length in inputs[0]["shape"]]
    if shape != expected or inputs[0]["dtype"] is not np.float32:
        raise BundleError(f"{MODEL}: its input is {shape} {inputs[0]['dtype'].__name__}, not {expected} float32")
    shape = [int(length) for length in outputs[0]["shape"]]
    wanted = 1 + max(finding.output for finding in bundle.card.findings)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < wanted or outputs[0]["dtype"] is not np.float32:
        raise BundleError(f"{MODEL}: its output is {shape}, not [1, {wanted} or more] float32")
    return int(inputs[0]["index"]), int(outputs[0]["index"])


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
