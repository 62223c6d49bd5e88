"""Small networks for tests, written by hand in LiteRT's schema: they need no TensorFlow, and what they say is known.

Each cell of the map scores the mean grey of its part of the input: 0 for black, 1 for white. So a test paints a white
square and knows where the map is highest, what the logit is and how far from "training" the image lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import ArrayLike
from PIL import Image

from dicom_node.pixels import PIPELINE_VERSION
from tests.phantom import limb
from worker.network import SIGNATURE
from worker.predictor import Predictor

SIZE, CELLS = (96, 96), (12, 12)
"""What `predictor` takes: cells of 8 × 8 model pixels, of 40 × 40 pixels in `white_square`'s picture."""


def predictor(folder: Path, *, model: Mapping[str, Any] | None = None, **changes: Any) -> Predictor:
    """Write a bundle of `network(…, **model)` and `card(…, **changes)` to `folder`, and load it."""
    made = network(SIZE, CELLS, **(model or {}))
    return Predictor.load(write_bundle(folder, card(SIZE, CELLS, **changes), made))


def white_square(at: tuple[int, int, int, int]) -> Image.Image:
    """A dark limb of 480 rows and 240 columns, and what is looked for, at (left, top, right, bottom)."""
    picture = Image.fromarray(limb(480, 240, highest=40))
    picture.paste(255, at)
    return picture


def network(
    size: tuple[int, int],
    cells: tuple[int, int],
    *,
    findings: int = 1,
    outputs: Sequence[str] = ("logits", "map", "distance"),
    times: Mapping[str, float] | None = None,
    signature: str | None = SIGNATURE,
) -> bytes:
    """Return a LiteRT file.

    Parameters
    ----------
    size, cells
        (rows, columns) of the input and of the map; each of the former a multiple of the latter.
    findings
        1 or 2: the second one scores how black a cell is.
    outputs
        The names to give, in the file's order: "logits", of each finding 20 × (best score - 0.5); "map", the scores;
        "distance", the mean grey, 0 to 1. Any other name stands for the logits too.
    times
        An output, and what to multiply it by: a value that it should not have.
    signature
        None writes a file without one, whose outputs have no names but those of tensors.
    """
    graph = _Graph()
    (rows, columns), (h, w) = size, cells
    grey = graph.tensor("serving_default_grey:0", (1, rows, columns, 1))
    means = graph.pooled("AVERAGE", grey, (rows // h, columns // w), (1, h, w, 1))
    white = graph.op("MUL", [means, graph.constant(1 / 255)], (1, h, w, 1), schema.MulOptionsT())
    scores = white
    if findings == 2:
        black = graph.op("SUB", [graph.constant(1.0), white], (1, h, w, 1), schema.SubOptionsT())
        joined = schema.ConcatenationOptionsT()
        joined.axis = 3
        scores = graph.op("CONCATENATION", [white, black], (1, h, w, 2), joined)
    best = graph.flat(graph.pooled("MAX", scores, cells, (1, 1, 1, findings)), findings)
    above = graph.op("SUB", [best, graph.constant(0.5)], (1, findings), schema.SubOptionsT())
    mean = graph.flat(graph.pooled("AVERAGE", white, cells, (1, 1, 1, 1)), 1)
    made = {
        "logits": (above, 20.0, (1, findings)),
        "map": (scores, 1.0, (1, h, w, findings)),
        "distance": (mean, 1.0, (1, 1)),
    }
    named = {}
    for name in outputs:
        tensor, factor, shape = made.get(name, made["logits"])
        factor *= (times or {}).get(name, 1.0)
        named[name] = graph.op("MUL", [tensor, graph.constant(factor)], shape, schema.MulOptionsT())
    return graph.written(grey, named, signature)


def card(size: tuple[int, int], cells: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """A card for `network`: present from the logit 0 on, absent below -2, refused beyond a mean grey of 0.3."""
    finding = {
        "code": {"value": "125605004", "scheme": "SCT", "meaning": "Fracture of bone"},
        "output": 0,
        "operating_points": {"absent_below": 0.1192, "present_from": 0.5},
        "calibration": {"method": "temperature", "parameters": {"temperature": 1.0}},
    }
    return {
        "schema_version": 1,
        "name": "by-hand",
        "version": "1",
        "created": "2026-01-02T03:04:05Z",
        "input": {"rows": size[0], "columns": size[1], "pipeline_version": PIPELINE_VERSION},
        "image_modalities": ["CR", "DX"],
        "findings": [finding],
        "intended_use": {"statement": "A test.", "body_parts": ["HAND", "WRIST"], "limits": ["Sees white squares."]},
        "training_data": [],
        "metrics": {"dataset": "none", "images": 0, "positives": 0, "groups": 0, "interval": "none", "values": {}},
        "software": {},
        "heatmap": {"rows": cells[0], "columns": cells[1], "region_share": 0.5},
        "gate": {
            "refuse_above": 0.3,
            "method": "Mean grey.",
            "negatives": [],
            "false_refusals": None,
            "accepted_images": 0,
            "accepted_refused": 0,
        },
    } | changes


def write_bundle(folder: Path, card: Mapping[str, Any], model: bytes, **files: bytes) -> Path:
    """Write a bundle with sums that match; `files` are others, by name with `_` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name.replace("_", "."): content for name, content in files.items()}
    contents |= {"card.json": json.dumps(card).encode(), "model.tflite": model}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@dataclass
class _Graph:
    """One graph of LiteRT's schema while it grows."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])  # the first one is empty by rule
    operators: list[Any] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def tensor(self, name: str, shape: Sequence[int], values: ArrayLike | None = None, dtype: Any = np.float32) -> int:
        made = schema.TensorT()
        made.name, made.shape = name, list(shape)
        made.type = schema.TensorType.INT32 if dtype is np.int32 else schema.TensorType.FLOAT32
        made.buffer = 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(values, dtype=dtype).tobytes(), dtype=np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, value: float) -> int:
        return self.tensor(f"constant_{len(self.tensors)}", (1,), [value])

    def op(self, kind: str, inputs: Sequence[int], shape: Sequence[int], options: Any = None) -> int:
        """Add an operator; return its one output."""
        code = getattr(schema.BuiltinOperator, kind)
        if code not in self.codes:
            self.codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = self.codes.index(code)
        made.inputs, made.outputs = list(inputs), [self.tensor(f"{kind.lower()}_{len(self.tensors)}", shape)]
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(made)
        return int(made.outputs[0])

    def pooled(self, kind: str, tensor: int, window: tuple[int, int], shape: Sequence[int]) -> int:
        options = schema.Pool2DOptionsT()
        options.padding = schema.Padding.VALID
        options.filterHeight = options.strideH = window[0]
        options.filterWidth = options.strideW = window[1]
        return self.op(f"{kind}_POOL_2D", [tensor], shape, options)

    def flat(self, tensor: int, length: int) -> int:
        shape = self.tensor(f"shape_{len(self.tensors)}", (2,), [1, length], np.int32)
        options = schema.ReshapeOptionsT()
        options.newShape = [1, length]
        return self.op("RESHAPE", [tensor, shape], (1, length), options)

    def written(self, grey: int, outputs: Mapping[str, int], signature: str | None) -> bytes:
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = [grey], list(outputs.values())
        model = schema.ModelT()
        model.version, model.description = 3, "a test's network"
        model.subgraphs, model.buffers = [graph], self.buffers
        model.operatorCodes = [_code(code) for code in self.codes]
        if signature is not None:
            made = schema.SignatureDefT()
            made.signatureKey, made.subgraphIndex = signature, 0
            made.inputs = [_entry("grey", grey)]
            made.outputs = [_entry(name, tensor) for name, tensor in outputs.items()]
            model.signatureDefs = [made]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _code(builtin: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    return code


def _entry(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry
