"""The network of a bundle: LiteRT's file, loaded once its input and outputs are those that the card speaks of.

LiteRT with XNNPACK starts in a fraction of a second and needs a fraction of TensorFlow's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from worker.bundle import MODEL, Bundle, BundleError, Card

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

SIGNATURE = "serving_default"
"""The entry of the LiteRT file that is run, as TensorFlow's exporter calls it."""

_ROUNDING = 1e-4


@dataclass(frozen=True)
class Outputs:
    """What the network says of one image, all of it finite.

    Attributes
    ----------
    logits
        float32, shape (K,): one for each of the network's findings.
    scores
        float32, shape (h, w, K), 0 to 1: its map; None where the card has no heatmap.
    distance
        How far the image's features lie from training's; None where the card has no gate.
    """

    logits: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32] | None
    distance: float | None


class Network:
    """A loaded network. Not for several threads at once: the interpreter has one set of tensors."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 1) -> None:
        """Raises BundleError when the file cannot be run or does not fit its card."""
        self._interpreter = _interpreter(bundle, num_threads)
        self._input = _checked_input(self._interpreter, bundle.card)
        self._outputs = _checked_outputs(self._interpreter, bundle.card)

    def run(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Run on one grey plane of the card's input size.

        Raises
        ------
        ArithmeticError
            An output is not a finite number, or a score is not between 0 and 1: it says nothing.
        """
        self._interpreter.set_tensor(self._input, pixels[np.newaxis, :, :, np.newaxis].astype(np.float32))
        self._interpreter.invoke()
        found = {name: self._interpreter.get_tensor(index)[0] for name, index in self._outputs.items()}
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise ArithmeticError(f"The model's output {name} is not a finite number.")
        return Outputs(
            logits=found["logits"],
            scores=_scores(found["map"]) if "map" in found else None,
            distance=float(found["distance"][0]) if "distance" in found else None,
        )


def _scores(found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if found.min() < -_ROUNDING or found.max() > 1 + _ROUNDING:
        raise ArithmeticError("The model's output map is not between 0 and 1.")
    return found.clip(0, 1)


def _interpreter(bundle: Bundle, num_threads: int) -> Interpreter:
    # Imported here, so that other rooms can import this file without the libraries that only a reader needs.
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=bundle.model, num_threads=num_threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{MODEL}: cannot be loaded ({type(error).__name__})") from None
    return interpreter


def _checked_input(interpreter: Interpreter, card: Card) -> int:
    """Return the index of the model's one input, once it is that of the card."""
    inputs = interpreter.get_input_details()
    if len(inputs) != 1:
        raise BundleError(f"{MODEL}: has {len(inputs)} inputs instead of one")
    expected = [1, card.input.rows, card.input.columns, 1]
    shape = [int(length) for length in inputs[0]["shape"]]
    if shape != expected or inputs[0]["dtype"] is not np.float32:
        raise BundleError(f"{MODEL}: its input is {shape} {inputs[0]['dtype'].__name__}, not {expected} float32")
    return int(inputs[0]["index"])


def _checked_outputs(interpreter: Interpreter, card: Card) -> dict[str, int]:
    """Return the indices of the model's outputs by name, once they are those of the card: all of them, and no others.

    An output that the card does not speak of is refused too: a model that can tell what it does not know must not be
    served without its gate.
    """
    wanted = 1 + max(finding.output for finding in card.findings)
    expected: dict[str, list[int]] = {"logits": [1, wanted]}
    if card.heatmap is not None:
        expected["map"] = [1, card.heatmap.rows, card.heatmap.columns, wanted]
    if card.gate is not None:
        expected["distance"] = [1, 1]
    found = _named_outputs(interpreter)
    if len(expected) == len(found) == 1:
        found = {"logits": next(iter(found.values()))}  # the only one needs no name
    if set(found) != set(expected):
        raise BundleError(f"{MODEL}: its outputs are {_words(found)}, those of the card {_words(expected)}")
    for name, shape in expected.items():
        _check_output(name, found[name], shape, or_more=name != "distance")
    return {name: details["index"] for name, details in found.items()}


def _named_outputs(interpreter: Interpreter) -> dict[str, _Tensor]:
    """Return what is known of every output, by its name in the signature.

    Names of tensors are the exporter's own business, and the order of outputs is alphabetical in some versions of it
    and not in others; the names in the signature are those that the release gave.
    """
    outputs: list[_Tensor] = interpreter.get_output_details()
    if SIGNATURE not in interpreter.get_signature_list():
        return {str(details["name"]): details for details in outputs}
    # Only asked for details: running it would lay out all tensors anew with every image.
    named: dict[str, _Tensor] = interpreter.get_signature_runner(SIGNATURE).get_output_details()
    if {details["index"] for details in named.values()} != {details["index"] for details in outputs}:
        raise BundleError(f"{MODEL}: its signature {SIGNATURE} does not name the outputs of its main graph")
    return named


def _check_output(name: str, details: _Tensor, expected: list[int], *, or_more: bool) -> None:
    """Compare an output with its expected shape, whose last length counts findings and may be larger `or_more`."""
    shape = [int(length) for length in details["shape"]]
    fits = shape[:-1] == expected[:-1] and (shape[-1:] == expected[-1:] or (or_more and shape[-1:] > expected[-1:]))
    if not fits or details["dtype"] is not np.float32:
        more = " or more" if or_more else ""
        wanted = f"[{', '.join(str(length) for length in expected)}{more}] float32"
        raise BundleError(f"{MODEL}: its output is {shape} {details['dtype'].__name__}, not {wanted} ({name})")


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


class _Tensor(TypedDict):
    """What LiteRT tells of a tensor, as far as it is used here."""

    name: str
    index: int
    shape: npt.NDArray[np.int32]
    dtype: type[np.generic]
