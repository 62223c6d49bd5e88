"""One untrusted file in a process of its own: `python -m console.web.one_file`, as `console.web.reading` starts it.

The file comes on standard input; what came of it goes to standard output as one JSON object. Nothing is written
anywhere else. The settings come by the environment.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import FileDataset

from console.web import films
from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import HeaderError, SourceHeader, read_header
from dicom_node.objects.content import Algorithm, Device, FindingOutcome, ImageOutcome, ReportContent
from dicom_node.objects.report import build_report
from dicom_node.pixels import MAX_PIXELS, ModelInput, NotAnalysable, grey_picture, model_input, model_input_from_picture
from dicom_node.wrap import PictureError, wrap_picture
from models import clock, logs
from models.reasons import Reason
from models.settings import Settings, load_settings
from models.version import VERSION
from worker.analyse import CannotAnalyse, decision_of, open_dataset, read_input
from worker.bundle import Bundle, default_bundle_path
from worker.isolation import Isolation, limit_memory
from worker.lifeline import die_with_parent
from worker.predictor import FindingReading, Predictor, Reading
from worker.score_maps import geometry, laid_over

LONGEST = 1024
"""Pixels of the shown picture's longer side."""


def main(arguments: list[str]) -> int:
    """Read the file on standard input; the starter's process id and the installation's UID are given."""
    parent, installation = arguments
    die_with_parent(int(parent))
    # Decoders may print: what is read at the other end is ours alone.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = load_settings()
    logs.configure("web", level=settings.log_level)
    limit_memory(settings.analysis.memory_limit)
    predictor = Predictor(Bundle.load(settings.model_bundle or default_bundle_path()))
    content = sys.stdin.buffer.read()
    with Isolation.of(settings).alarm(), answer:
        json.dump(answer_of(content, predictor, settings, installation), answer)
    return 0


def answer_of(content: bytes, predictor: Predictor, settings: Settings, installation: str) -> dict[str, Any]:
    """Read one file; whatever is wrong with it becomes a reason."""
    dataset: FileDataset | None = None
    header: SourceHeader | None = None
    source: ModelInput | None = None
    reading: Reading | None = None
    reason: Reason | None = None
    try:
        picture = _picture(content)
        dataset = open_dataset(io.BytesIO(content)) if picture is None else _wrapped(content)
        header = _header(dataset)
        if picture is None:
            refusal = reason_not_to_read(header, settings) or predictor.bundle.accepts(header)
            if refusal is not None:
                raise CannotAnalyse(refusal)
            source = model_input(dataset, predictor.size)
        else:
            source = model_input_from_picture(picture, predictor.size)
        reading = read_input(source, predictor)
    except (CannotAnalyse, NotAnalysable) as refused:
        reason = refused.reason
    return {
        "kind": "picture" if content[:3] in (b"\x89PN", b"\xff\xd8\xff") else "DICOM",
        "decision": "not_analysed" if reading is None else decision_of(reading),
        "reason": reason,
        "milliseconds": None if reading is None else reading.milliseconds,
        "findings": [] if reading is None else [_finding(finding) for finding in reading.findings],
        "rows": None if header is None else header.rows,
        "columns": None if header is None else header.columns,
        **_drawn(dataset, source, reading),
        "report": None if header is None else _report(header, reading, reason, predictor, settings, installation),
    }


def _picture(content: bytes) -> Image.Image | None:
    """Open a PNG or JPEG picture, not decoded yet; None for anything else."""
    if content[128:132] == b"DICM":
        return None
    try:
        with warnings.catch_warnings():
            # Pillow's own limit lies above ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError:
        raise CannotAnalyse(Reason.TOO_LARGE) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None
    if picture.width * picture.height > MAX_PIXELS:
        raise CannotAnalyse(Reason.TOO_LARGE)
    return picture


def _wrapped(content: bytes) -> FileDataset:
    """A picture as the DICOM object that would have been sent to have it read."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            return wrap_picture(picture, patient_id="", patient_name="", laterality="U")
    except PictureError:
        raise CannotAnalyse(Reason.TOO_LARGE) from None
    except (OSError, ValueError, SyntaxError, EOFError):
        raise CannotAnalyse(Reason.UNDECODABLE) from None


def _header(dataset: FileDataset) -> SourceHeader:
    try:
        return read_header(dataset)
    except HeaderError:
        raise CannotAnalyse(Reason.NOT_DICOM) from None


def _finding(reading: FindingReading) -> dict[str, Any]:
    return {
        "meaning": reading.code_meaning,
        "probability": reading.probability,
        "decision": reading.decision,
        "absent_below": reading.absent_below,
        "present_from": reading.threshold,
        "box": None if reading.region is None else list(reading.region.box),
    }


def _drawn(dataset: FileDataset | None, source: ModelInput | None, reading: Reading | None) -> dict[str, str | None]:
    """The radiograph and the model's map over it, where they can be shown."""
    try:
        grey = None if dataset is None else grey_picture(dataset, LONGEST)
    except NotAnalysable:
        grey = None
    heat = None
    if grey is not None and source is not None and reading is not None and reading.heatmaps:
        size = (source.source_rows, source.source_columns)
        maps = [
            laid_over(scores, geometry(source), size, (grey.shape[0], grey.shape[1])) for scores in reading.heatmaps
        ]
        heat = _encoded(films.heat(np.maximum.reduce(maps)))
    return {"radiograph": None if grey is None else _encoded(films.radiograph(grey)), "heat": heat}


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _report(
    header: SourceHeader,
    reading: Reading | None,
    reason: Reason | None,
    predictor: Predictor,
    settings: Settings,
    installation: str,
) -> str:
    """The report that would have been sent of a study of this one image."""
    card = predictor.bundle.card
    algorithm = Algorithm(card.name, card.version, "Osteon", predictor.bundle.sha256)
    outcome = (
        ImageOutcome(header, not_analysed=reason)
        if reading is None
        else ImageOutcome(header, tuple(_outcome(finding) for finding in reading.findings), algorithm=algorithm)
    )
    content = ReportContent(
        installation_uid=installation,
        device=Device(serial=installation, software_version=VERSION, station_ae_title=settings.ae_title),
        algorithm=algorithm,
        created_at=clock.now(),
        images=(outcome,),
        series_number=settings.report.series_number,
        series_description=settings.report.series_description,
    )
    return _encoded(build_report(content))


def _outcome(reading: FindingReading) -> FindingOutcome:
    plain = FindingOutcome(reading.probability, reading.decision, reading.absent_below, reading.threshold)
    code = replace(plain.code, value=reading.code_value, scheme=reading.code_scheme, meaning=reading.code_meaning)
    return replace(plain, code=code, region=None if reading.region is None else reading.region.box)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
