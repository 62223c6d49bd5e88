"""`osteon predict`: read files from disk, without a network, a database or a queue."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, UnidentifiedImageError

from console.start import saying_plainly
from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import HeaderError, read_header
from dicom_node.pixels import ModelInput, NotAnalysable, model_input, model_input_from_picture
from models import logs
from models.reasons import Reason
from models.settings import Settings, load_settings
from worker.analyse import CannotAnalyse, decision_of, open_dataset, read_input
from worker.bundle import Bundle, default_bundle_path
from worker.predictor import FindingReading, Predictor

_PREAMBLE = 128


@dataclass(frozen=True)
class Line:
    """What is printed of one file.

    `region` (a box) and `peak` are in source pixels and say where the model's heatmap is highest. They are there
    whatever the decision is, wherever the model has a heatmap; the report shows a region only for a fracture.
    """

    path: str
    decision: str
    probability: float | None
    threshold: float | None
    reason: str | None
    region: dict[str, float] | None
    peak: dict[str, float] | None
    model: str
    version: str
    milliseconds: float


def predict(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="DICOM, PNG or JPEG files.", metavar="FILE")
    ],
    bundle: Annotated[Path | None, typer.Option(help="Model bundle; default: the one in force.")] = None,
) -> None:
    """Read images and print one JSON object a line. Research use: not for primary diagnosis."""
    settings = load_settings()
    logs.configure("predict", level="error")
    with saying_plainly():
        predictor = Predictor.load(bundle or settings.model_bundle or default_bundle_path())
    for path in files:
        print(json.dumps(asdict(line_for(path, predictor, settings))), flush=True)


def line_for(path: Path, predictor: Predictor, settings: Settings) -> Line:
    """Read one file; whatever is wrong with it becomes a reason."""
    card = predictor.bundle.card
    begun = time.perf_counter()
    reading: FindingReading | None = None
    decision, reason = "not_analysed", None
    try:
        source = _source(path, predictor.bundle, predictor.size, settings)
        read = read_input(source, predictor)
    except (CannotAnalyse, NotAnalysable) as refused:
        reason = refused.reason.value
    else:
        decision = decision_of(read)
        reading = max((f for f in read.findings if f.decision == decision), key=lambda finding: finding.probability)
    return Line(
        path=str(path),
        decision=decision,
        probability=None if reading is None else round(reading.probability, 6),
        threshold=None if reading is None else reading.threshold,
        reason=reason,
        region=_region(reading),
        peak=_peak(reading),
        model=card.name,
        version=card.version,
        milliseconds=round((time.perf_counter() - begun) * 1000, 2),
    )


def _source(path: Path, bundle: Bundle, size: tuple[int, int], settings: Settings) -> ModelInput:
    if not _is_dicom(path):
        with _picture(path) as picture:
            return model_input_from_picture(picture, size)
    dataset = open_dataset(path)
    try:
        header = read_header(dataset)
    except HeaderError:
        raise CannotAnalyse(Reason.NOT_DICOM) from None
    refusal = reason_not_to_read(header, settings) or bundle.accepts(header)
    if refusal is not None:
        raise CannotAnalyse(refusal)
    return model_input(dataset, size)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise CannotAnalyse(Reason.NOT_DICOM) from None


def _region(reading: FindingReading | None) -> dict[str, float] | None:
    if reading is None or reading.region is None:
        return None
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), reading.region.box, strict=True))


def _peak(reading: FindingReading | None) -> dict[str, float] | None:
    return None if reading is None or reading.peak is None else {"x": reading.peak.x, "y": reading.peak.y}
