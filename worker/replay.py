"""Runs a stored prediction again, from the stored image and the bundle with the same sha256, and compares.

Two ways lead to what the model saw: the received file, through the pixel pipeline, and the kept exact input, which is
still there when retention has removed the file. Either has to give the digest on record, and the model on it the same
decisions, probabilities within 1e-4 and regions within half a source pixel (other processors round otherwise).
"""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as Picture
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from dicom_node.current import newest_header
from dicom_node.image.exposed import Box
from dicom_node.image.scale import drawn_length
from dicom_node.pixels import PIPELINE_VERSION, ModelInput, NotAnalysable, model_input
from dicom_node.spool import Spool
from models import audit
from models.database import Database
from models.settings import Settings
from models.tables import File, FileKind, Finding, Image, Prediction
from models.version import VERSION
from worker.activation import folders, sums_of
from worker.analyse import CannotAnalyse, decision_of, open_dataset
from worker.bundle import SUMS, Bundle, BundleError
from worker.predictor import FindingReading, Predictor

PROBABILITY = 1e-4
PIXELS = 0.5
AT_ONCE = 1024 * 1024


class Source(StrEnum):
    """What a prediction is run again from."""

    INPUT = "input"
    FILE = "file"


class Outcome(StrEnum):
    """What came of it."""

    SAME = "same"
    DIFFERS = "differs"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Difference:
    """Something that is not as it is on record."""

    source: Source
    what: str
    recorded: str
    found: str


@dataclass
class Replay:
    """What came of running a prediction again."""

    prediction: int
    ran: list[Source] = field(default_factory=list)
    """From what it was run."""
    differences: list[Difference] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    """Why it was not run, or not from everything that was asked for."""
    bundle: str | None = None
    """The folder of the bundle."""
    compared: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """Same only if it was run."""
        if self.differences:
            return Outcome.DIFFERS
        return Outcome.SAME if self.ran else Outcome.IMPOSSIBLE


class Impossible(Exception):
    """It cannot be run again; the text says why."""


class Replayer:
    """Runs predictions again and puts on record that it did. Loads each bundle once."""

    def __init__(
        self, settings: Settings, database: Database, spool: Spool, *, actor: str, bundle: Path | None = None
    ) -> None:
        """`bundle` is where the bundle lies; without it, it is looked for among those in force and shipped."""
        self._settings = settings
        self._database = database
        self._spool = spool
        self._actor = actor
        self._bundle = bundle
        self._loaded: dict[str, Predictor] = {}

    def replay(self, prediction_id: int, sources: Sequence[Source] = tuple(Source)) -> Replay:
        """Run a prediction again from each of these. Raises LookupError where there is no such prediction."""
        found = Replay(prediction_id)
        with self._database.read() as session:
            stored = _stored(session, prediction_id)
        try:
            self._run(stored, sources, found)
        except (Impossible, BundleError) as error:
            found.why.append(str(error))
        with self._database.write() as session:
            audit.record(
                session,
                actor=self._actor,
                action="prediction.replayed",
                subject="prediction",
                subject_id=prediction_id,
                outcome=found.outcome.value,
                source=", ".join(found.ran),
                bundle_sha256=stored.prediction.model_version.bundle_sha256,
                software=VERSION,
            )
        return found

    def _run(self, stored: _Stored, sources: Sequence[Source], found: Replay) -> None:
        prediction = stored.prediction
        if prediction.pipeline_version != PIPELINE_VERSION:
            raise Impossible(
                f"it was made with pixel pipeline {prediction.pipeline_version}, by Osteon "
                f"{prediction.software_version}; this version has {PIPELINE_VERSION}"
            )
        predictor = self._predictor(stored)
        found.bundle = str(predictor.bundle.path)
        for source in sources:
            comparison = _Comparison(stored, source, found)
            try:
                if source is Source.FILE:
                    seen = self._from_file(stored, predictor, comparison)
                else:
                    seen = self._from_input(stored, predictor, comparison)
            except Impossible as error:
                found.why.append(f"not from the {_NAMES[source]}: {error}")
                continue
            except _Undecodable as error:
                comparison.differs(_NAMES[source], "what could be read", str(error))
                continue
            comparison.compare(seen, predictor)

    def _predictor(self, stored: _Stored) -> Predictor:
        sha256 = stored.prediction.model_version.bundle_sha256
        if sha256 not in self._loaded:
            self._loaded[sha256] = Predictor(self._find(stored))
        return self._loaded[sha256]

    def _find(self, stored: _Stored) -> Bundle:
        """Return the prediction's bundle. Raises Impossible or BundleError."""
        version = stored.prediction.model_version
        looked = [self._bundle] if self._bundle else list(folders(self._settings))
        for folder in looked:
            if sums_of(folder) != version.bundle_sha256:
                continue
            try:
                return Bundle.load(folder)
            except BundleError as error:
                raise BundleError(f"the bundle in {folder} is not what it was: {error}") from None
        wanted = f"{version.name} {version.version}, sha256 {version.bundle_sha256}"
        if self._bundle:
            raise Impossible(f"{self._bundle} is not its bundle ({wanted}): {_what_it_is(self._bundle)}")
        raise Impossible(
            f"its bundle is not here ({wanted}); name its folder. Looked in: {', '.join(map(str, looked))}"
        )

    def _from_file(self, stored: _Stored, predictor: Predictor, comparison: _Comparison) -> ModelInput:
        file = stored.received
        with self._opened(file) as received:
            received.seek(file.digest_offset if file else 0)
            comparison.digest("received file", file.sha256 if file else "", received)
            received.seek(0)
            try:
                seen = model_input(open_dataset(received), predictor.size)
            except (NotAnalysable, CannotAnalyse) as refused:
                raise _Undecodable(f"cannot be read any more ({refused.reason.value})") from None
        comparison.value("pixels", stored.prediction.pixel_sha256, seen.pixel_digest)
        return seen

    def _from_input(self, stored: _Stored, predictor: Predictor, comparison: _Comparison) -> ModelInput:
        with self._opened(stored.kept) as kept:
            content = kept.read()
        comparison.digest("kept input", stored.kept.sha256 if stored.kept else "", io.BytesIO(content))
        try:
            with Picture.open(io.BytesIO(content)) as picture:
                pixels = np.asarray(picture.convert("L"))
        except (OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
            raise _Undecodable("is no picture any more") from None
        if pixels.shape != predictor.size:
            raise _Undecodable(f"has {pixels.shape[0]} × {pixels.shape[1]} pixels")
        return stored.placed(np.ascontiguousarray(pixels))

    def _opened(self, file: File | None) -> BinaryIO:
        if file is None:
            raise Impossible("there is none on record")
        if file.removed_at is not None:
            raise Impossible(f"retention removed it on {file.removed_at:%Y-%m-%d}")
        try:
            return self._spool.open(file.key)
        except FileNotFoundError:
            raise Impossible("it is missing in the spool") from None
        except OSError as error:
            raise Impossible(f"it cannot be read ({error.strerror})") from None


def sample(session: Session, count: int) -> list[int]:
    """Return the ids of up to `count` predictions, drawn at random from all there are."""
    newest = session.scalar(select(func.max(Prediction.id))) or 0
    drawn: dict[int, None] = {}
    # Numbers may be missing, and some are drawn twice.
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        number = random.randint(1, max(1, newest))  # noqa: S311 (no secret)
        if session.scalar(select(Prediction.id).where(Prediction.id == number)) is not None:
            drawn[number] = None
    return list(drawn)


def of_study(session: Session, study_id: int) -> list[int]:
    """Return the ids of all predictions of a study."""
    images = select(Image.id).where(Image.study_id == study_id)
    return list(session.scalars(select(Prediction.id).where(Prediction.image_id.in_(images)).order_by(Prediction.id)))


_NAMES = {Source.INPUT: "kept input", Source.FILE: "received file"}


class _Undecodable(Exception):
    """What was stored is not what it was, so far that nothing can be made of it."""


@dataclass(frozen=True)
class _Stored:
    """A prediction with all that it was made from."""

    prediction: Prediction
    received: File | None
    kept: File | None
    size: tuple[int | None, int | None]
    """(rows, columns) of the source, as its header says."""

    @property
    def has_places(self) -> bool:
        """Whether it is known where the model looked."""
        return self.prediction.geometry is not None and None not in self.size

    def placed(self, pixels: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> ModelInput:
        """Return the kept input together with where it lay on the source, as `dicom_node.pixels` placed it."""
        height, width = pixels.shape
        geometry = self.prediction.geometry or {"drawn": [0, 0, width, height]}
        left, top, right, bottom = (round(edge) for edge in geometry["drawn"])
        factor = min(height / (bottom - top), width / (right - left))
        drawn = drawn_length(bottom - top, factor, height), drawn_length(right - left, factor, width)
        return ModelInput(
            pixels=pixels,
            source_rows=self.size[0] or bottom,
            source_columns=self.size[1] or right,
            box=Box(left, top, right, bottom),
            scale=factor,
            left=float((width - drawn[1]) // 2),
            top=float((height - drawn[0]) // 2),
            pixel_digest=self.prediction.pixel_sha256,
        )


def _stored(session: Session, prediction_id: int) -> _Stored:
    prediction = session.get(
        Prediction,
        prediction_id,
        options=[
            selectinload(Prediction.findings).selectinload(Finding.regions),
            selectinload(Prediction.model_version),
        ],
    )
    if prediction is None:
        raise LookupError(f"there is no prediction {prediction_id}")
    received = session.scalars(
        select(File)
        .where(File.image_id == prediction.image_id, File.kind == FileKind.INSTANCE)
        .order_by(File.id.desc())
    ).first()
    kept = None if prediction.input_file_id is None else session.get(File, prediction.input_file_id)
    header = newest_header(session, session.get_one(Image, prediction.image_id))
    return _Stored(prediction, received, kept, (header.rows, header.columns))


class _Comparison:
    """Compares what is found, from one source, with what is on record."""

    def __init__(self, stored: _Stored, source: Source, into: Replay) -> None:
        self._stored = stored
        self._source = source
        self._into = into

    def differs(self, what: str, recorded: str, found: str) -> None:
        self._into.differences.append(Difference(self._source, what, recorded, found))

    def value(self, what: str, recorded: str, found: str) -> None:
        if recorded != found:
            self.differs(what, recorded, found)

    def digest(self, what: str, recorded: str, file: BinaryIO) -> None:
        digest = hashlib.sha256()
        while block := file.read(AT_ONCE):
            digest.update(block)
        self.value(what, recorded, digest.hexdigest())

    def compare(self, seen: ModelInput, predictor: Predictor) -> None:
        """Run the model and compare everything it says."""
        prediction = self._stored.prediction
        self.value("model input", prediction.input_sha256, hashlib.sha256(seen.pixels.tobytes()).hexdigest())
        try:
            reading = predictor.read(seen)
        except ArithmeticError:
            self._into.ran.append(self._source)
            self.differs("answer", prediction.decision, "none: an output of the model is not what it can be")
            return
        self._into.ran.append(self._source)
        if reading.unfamiliar:
            self.differs("answer", prediction.decision, f"refused as unlike training, distance {reading.distance:.6g}")
        self.value("decision", prediction.decision, decision_of(reading))
        found = {(one.code_scheme, one.code_value): one for one in reading.findings}
        for finding in prediction.findings:
            again = found.pop((finding.code_scheme, finding.code_value), None)
            if again is None:
                self.differs(finding.code_meaning, "a finding", "none")
            else:
                self._compare_finding(finding, again)
        for extra in found.values():
            self.differs(extra.code_meaning, "none", "a finding")

    def _compare_finding(self, finding: Finding, again: FindingReading) -> None:
        name = finding.code_meaning
        self.value(f"{name}: decision", finding.decision, again.decision)
        for what, recorded, found in (
            ("probability", finding.probability, again.probability),
            ("absent below", finding.absent_below, again.absent_below),
            ("present from", finding.present_from, again.threshold),
        ):
            if not abs(recorded - found) <= PROBABILITY:
                self.differs(f"{name}: {what}", f"{recorded:.6f}", f"{found:.6f}")
        self._into.compared.append(
            f"{name}: {again.decision}, probability {finding.probability:.6f} and {again.probability:.6f}"
        )
        if self._source is Source.INPUT and not self._stored.has_places:
            self._into.why.append("the region was not compared: where the input lay on the image is not on record")
            return
        self._compare_places(finding, again)

    def _compare_places(self, finding: Finding, again: FindingReading) -> None:
        region, peak = again.region, again.peak
        boxes = [(stored.x_min, stored.y_min, stored.x_max, stored.y_max) for stored in finding.regions]
        self._places(finding, "region", boxes, [] if region is None else [region.box])
        peaks = [(r.peak_x, r.peak_y) for r in finding.regions if r.peak_x is not None and r.peak_y is not None]
        self._places(finding, "peak", peaks, [] if peak is None else [peak])
        for stored in finding.regions:
            if stored.outline is not None and region is not None:
                self._places(finding, "outline", stored.outline, region.outline)

    def _places(
        self, finding: Finding, what: str, recorded: Sequence[Sequence[float]], found: Sequence[Sequence[float]]
    ) -> None:
        if not _alike(recorded, found):
            self.differs(f"{finding.code_meaning}: {what}", _in_words(recorded), _in_words(found))


def _alike(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    return len(one) == len(other) and all(
        len(a) == len(b) and all(math.isclose(x, y, rel_tol=0, abs_tol=PIXELS) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _in_words(places: Sequence[Sequence[float]]) -> str:
    return "; ".join(", ".join(f"{edge:.1f}" for edge in place) for place in places) or "none"


def _what_it_is(folder: Path) -> str:
    found = sums_of(folder)
    return f"no {SUMS} can be read there" if found is None else f"its sha256 is {found}"
