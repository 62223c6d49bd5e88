"""The image that a prediction is of, as people see it, with the model's map over it: for the heatmap and the console.

From the received file, as long as it is there. After retention took it, from the model's exact input, which is kept as
long as the prediction, and coarser.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture
from pydicom import Dataset
from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.headers import SourceHeader
from dicom_node.objects import heatmap
from dicom_node.objects.presentation_state import Grayscale, PresentationError, read_grayscale
from dicom_node.pixels import NotAnalysable, Windowable, grey_picture, picture_as_stated, picture_for_windows
from dicom_node.spool import Spool
from models import logs
from models.database import Database
from models.tables import File, FileKind, Finding, Prediction
from worker.analyse import CannotAnalyse, open_dataset
from worker.regions import Scores
from worker.score_maps import Geometry, kept, laid_over

LONGEST = 1024
"""Pixels of a picture's longer side: for looking where, not for reading; 0.2 MB instead of 10."""
_Grey = npt.NDArray[np.uint8]
_Drawn = TypeVar("_Drawn")
log = logs.get("pictures")


@dataclass(frozen=True)
class _Source:
    """Where the pixels of a prediction are, and what the model said where."""

    image_id: int
    file_key: str | None
    input_key: str | None
    geometry: Geometry | None
    maps: list[bytes]
    """Of the findings that are a fracture."""


class Pictures:
    """Draws what predictions are of."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._database = database
        self._spool = spool

    def picture(self, prediction_id: int, header: SourceHeader) -> heatmap.Picture | None:
        """Draw the image of a prediction; None where neither file nor model input are left to draw it from."""
        source = self._source(prediction_id)
        size = (header.rows or 0, header.columns or 0)
        pixels = self._of_file(source, grey_picture)
        if pixels is None:
            pixels = self._from_input(source, size)
        if pixels is None:
            return None
        return heatmap.Picture(pixels, self._scores(source, size, pixels.shape), *size)

    def as_stated(self, prediction_id: int) -> _Grey | None:
        """Draw the image of a prediction as its file says that it is shown; None where the file is gone."""
        return self._of_file(self._source(prediction_id), picture_as_stated)

    def for_windows(self, prediction_id: int) -> Windowable | None:
        """Read the image of a prediction for windows; None where the file is gone, or has none to choose."""
        return self._of_file(self._source(prediction_id), picture_for_windows)

    @staticmethod
    def digest(session: Session, prediction_id: int) -> str:
        """What is drawn, as a SHA-256 in hexadecimal: known without drawing it."""
        prediction = session.get_one(Prediction, prediction_id)
        maps = [hashlib.sha256(finding.score_map or b"").hexdigest() for finding in prediction.findings]
        facts = [prediction.pixel_sha256, prediction.pipeline_version, prediction.geometry, maps]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def grayscale(self, prediction_id: int, header: SourceHeader) -> Grayscale | None:
        """Read how the image of a prediction is to be shown; None where its file is gone or does not say it."""
        source = self._source(prediction_id)
        if source.file_key is None:
            return None
        try:
            with self._spool.open(source.file_key) as file:
                found = read_grayscale(open_dataset(file, pixels=False))
            if (found.rows, found.columns) != (header.rows, header.columns):
                raise PresentationError("the file has another size than the header on record")
            return found
        except (CannotAnalyse, PresentationError, FileNotFoundError) as error:
            log.warning("no presentation state", image=source.image_id, error=logs.describe(error))
            return None

    def _source(self, prediction_id: int) -> _Source:
        with self._database.read() as session:
            prediction = session.get_one(Prediction, prediction_id)
            maps = session.scalars(
                select(Finding.score_map)
                .where(
                    Finding.prediction_id == prediction_id,
                    Finding.decision == "fracture",
                    Finding.score_map.is_not(None),
                )
                .order_by(Finding.id)
            )
            file_key = session.scalars(
                select(File.key).where(
                    File.image_id == prediction.image_id, File.kind == FileKind.INSTANCE, File.removed_at.is_(None)
                )
            ).first()
            input_key = session.scalars(select(File.key).where(File.id == prediction.input_file_id)).first()
            return _Source(
                prediction.image_id, file_key, input_key, prediction.geometry, [png for png in maps if png is not None]
            )

    def _of_file(self, source: _Source, draw: Callable[[Dataset, int], _Drawn]) -> _Drawn | None:
        if source.file_key is None:
            return None
        try:
            with self._spool.open(source.file_key) as file:
                return draw(open_dataset(file), LONGEST)
        except (CannotAnalyse, NotAnalysable, FileNotFoundError) as error:
            log.warning("not drawn from the file", image=source.image_id, error=logs.describe(error))
            return None

    def _from_input(self, source: _Source, size: tuple[int, int]) -> _Grey | None:
        if source.input_key is None or source.geometry is None or not all(size):
            return None
        try:
            with self._spool.open(source.input_key) as file, Picture.open(io.BytesIO(file.read())) as picture:
                seen = np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
        except FileNotFoundError as error:
            log.warning("nothing to draw", image=source.image_id, error=logs.describe(error))
            return None
        drawn: _Grey = np.rint(laid_over(seen, source.geometry, size, _within(size)) * 255).astype(np.uint8)
        return drawn

    @staticmethod
    def _scores(source: _Source, size: tuple[int, int], drawn: tuple[int, ...]) -> Scores | None:
        if not source.maps or source.geometry is None or not all(size):
            return None
        maps = [laid_over(kept(png), source.geometry, size, (drawn[0], drawn[1])) for png in source.maps]
        highest: Scores = np.maximum.reduce(maps)
        return highest


def _within(size: tuple[int, int]) -> tuple[int, int]:
    shrink = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
