"""Analyse an image: from the file in the spool to a prediction in the record, or a reason why there is none."""

from __future__ import annotations

import hashlib
import io
import traceback
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import pydicom
from PIL import Image as Picture
from pydicom.dataset import FileDataset
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from dicom_node.current import newest_header
from dicom_node.headers import SourceHeader
from dicom_node.inflate import TooLarge, check_inflated_size
from dicom_node.objects.content import Decision, overall
from dicom_node.pixels import PIPELINE_VERSION, ModelInput, NotAnalysable, model_input
from dicom_node.spool import Spool
from models import audit, clock, logs
from models.database import Database
from models.reasons import Reason
from models.settings import Settings
from models.tables import (
    File,
    FileKind,
    Finding,
    Image,
    ImageState,
    Prediction,
    Region,
)
from models.version import VERSION
from worker.activation import ACTIVE, SHADOW
from worker.claims import Claim, LeaseLost, Work, claim, failed_attempt, release, still_held, time_limit
from worker.isolation import Ended, Isolation
from worker.leases import kept_alive
from worker.predictor import FindingReading, Predictor, Reading
from worker.regions import Scores
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy
from worker.score_maps import geometry, keep
from worker.troubles import Troubles, is_the_nodes

# Of 9: takes 40 % of the time of Pillow's default, 6, for a file that is a fifth larger.
_PNG_LEVEL = 3
log = logs.get("analyse")


class CannotAnalyse(Exception):
    """This image is not for this reader; `reason` says why.

    `distance` is that of its features from training's, where they were the reason.
    """

    def __init__(self, reason: Reason, *, distance: float | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.distance = distance


@dataclass(frozen=True)
class Reader:
    """A model that reads, and what it is called on record."""

    predictor: Predictor
    version_id: int
    """Of its row in `model_versions`."""


@dataclass(frozen=True)
class _Read:
    """What came of an image that could be read."""

    image: ModelInput
    reading: Reading


@dataclass(frozen=True)
class _Kept:
    """A model input in the spool."""

    key: str
    size: int
    sha256: str

    def row(self, image: Image) -> File:
        """Its row."""
        return File(
            image_id=image.id,
            kind=FileKind.MODEL_INPUT,
            key=self.key,
            size=self.size,
            sha256=self.sha256,
            stored_at=clock.now(),
        )


@dataclass(frozen=True)
class _Shadowed:
    """What the shadow model made of an image, and which version it is."""

    read: _Read
    version_id: int


class Analyst:
    """Analyses one image at a time with one model."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        spool: Spool,
        reader: Reader,
        *,
        shadow: Reader | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """Without `isolation`, every try runs in this process, without a time limit of its own."""
        self._database = database
        self._limit = time_limit(Work.ANALYSE, settings)
        self._spool = spool
        self._reader = reader
        self._shadow = shadow
        self._isolation = isolation
        analysis = settings.analysis
        self._retries = RetryPolicy(first=analysis.first_wait, longest=analysis.longest_wait, most=analysis.max_tries)
        self._troubles = Troubles(database)
        self._actor = audit.part_actor("worker")
        self.out_of_memory = False
        """Whether this process got no memory once: it is better replaced."""

    @property
    def owes(self) -> bool:
        """Whether an image could not be given back, since the database was away."""
        return self._troubles.owes

    def analyse_next(self) -> bool:
        """Claim the most urgent image and analyse it. Return whether there was one."""
        if self._troubles.hold_back():
            return False
        held = claim(self._database, Work.ANALYSE, limit=self._limit)
        if held is None:
            return False
        if self._isolation is None or self._retries.used_up(held.tries):
            with kept_alive(self._database, held.lease):
                self.analyse(held)
        elif held.tries == 1:
            with kept_alive(self._database, held.lease), self._isolation.alarm():
                self.analyse(held)
        else:
            with kept_alive(self._database, replace(held.lease, limit=self._isolation.longest)):
                self._analyse_alone(held, self._isolation)
        return True

    def analyse(self, held: Claim) -> None:
        """Analyse an image that is held, and record what came of it."""
        try:
            self._analyse(held)
            self._troubles.passed()
        except LeaseLost:
            log.warning("lease lost", image=held.row_id)
        except MemoryError as error:
            said = logs.describe(error)
            # The frames hold what took the memory: without it nothing could be recorded either.
            traceback.clear_frames(error.__traceback__)
            self.out_of_memory = True
            log.error("no memory", image=held.row_id, tries=held.tries, error=said)
            self._failed(held, said)
        except Exception as error:
            if is_the_nodes(error, self._spool):
                self._troubles.met(held, logs.describe(error))
                return
            log.error("analysis failed", image=held.row_id, tries=held.tries, exc_info=error)
            gone = isinstance(error, FileNotFoundError)
            self._failed(held, logs.describe(error), Reason.FILE_MISSING if gone else Reason.FAILED)

    def _analyse_alone(self, held: Claim, isolation: Isolation) -> None:
        """The try before this one failed, or ended with its process: this one gets a process of its own."""
        ended = isolation.run(held)
        if ended is Ended.DONE:
            self._troubles.passed()
        elif ended is Ended.TROUBLE:
            self._troubles.met(held, "process_alone")
        else:
            log.error("analysis took its process with it", image=held.row_id, tries=held.tries, ended=ended)
            self._failed(held, ended)

    def _analyse(self, held: Claim) -> None:
        if self._retries.used_up(held.tries):
            self._failed(held, ENDED_WITHOUT_A_WORD)
            return
        with self._database.read() as session:
            image = session.get_one(Image, held.row_id)
            key = session.scalars(
                select(File.key).where(File.image_id == image.id, File.kind == FileKind.INSTANCE)
            ).one()
            header = newest_header(session, image)
            read_before = session.scalar(
                select(exists().where(Prediction.image_id == image.id, Prediction.role == ACTIVE))
            )
        try:
            refusal = self._reader.predictor.bundle.accepts(header)
            if refusal is not None:
                raise CannotAnalyse(refusal)
            if read_before:
                # The same pixels under another header: what was predicted of them stands.
                self._stands(held)
                return
            dataset = self._open(key)
            read = read_dataset(dataset, self._reader.predictor)
        except CannotAnalyse as refused:
            self._not_analysed(held, refused)
        else:
            self._analysed(held, read, self._shadowed(held, header, dataset, read))

    def _shadowed(self, held: Claim, header: SourceHeader, dataset: FileDataset, read: _Read) -> _Shadowed | None:
        """Let the shadow model read it too. Whatever comes of that, the image is read: only the first try asks it."""
        if self._shadow is None or held.tries > 1:
            return None
        predictor = self._shadow.predictor
        try:
            refusal = predictor.bundle.accepts(header)
            if refusal is not None:
                raise CannotAnalyse(refusal)
            same = read.image.pixels.shape == predictor.size
            source = read.image if same else _input_of(dataset, predictor)
            return _Shadowed(_Read(source, read_input(source, predictor)), self._shadow.version_id)
        except CannotAnalyse as refused:
            log.info("not read by the shadow model", image=held.row_id, reason=refused.reason.value)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            log.error("shadow model failed", image=held.row_id, exc_info=error)
        return None

    def _open(self, key: str) -> FileDataset:
        with self._spool.open(key) as file:
            return open_dataset(file)

    def _analysed(self, held: Claim, read: _Read, shadowed: _Shadowed | None) -> None:
        # The files first: a prediction never names an input that is not on disk.
        kept = self._keep(read.image)
        beside = None
        if shadowed is not None:
            beside = kept if shadowed.read.image is read.image else self._keep(shadowed.read.image)
        try:
            prediction = self._record(held, read, kept, shadowed, beside)
        except LeaseLost:
            for file in {kept, beside or kept}:
                self._spool.delete(file.key)
            raise
        milliseconds = round(read.reading.milliseconds)
        log.info("analysed", image=held.row_id, decision=prediction.decision, milliseconds=milliseconds)

    def _keep(self, source: ModelInput) -> _Kept:
        png = as_png(source)
        key, sha256 = self._spool.put_bytes(png)
        return _Kept(key, len(png), sha256)

    def _record(
        self, held: Claim, read: _Read, kept: _Kept, shadowed: _Shadowed | None, beside: _Kept | None
    ) -> Prediction:
        with self._database.write() as session:
            image = still_held(session, held, Image)
            file = kept.row(image)
            session.add(file)
            session.flush()
            prediction = _prediction(image, self._reader.version_id, read, file, ACTIVE)
            session.add(prediction)
            if shadowed is not None and beside is not None:
                other = file if beside is kept else beside.row(image)
                session.add(other)
                session.flush()
                session.add(_prediction(image, shadowed.version_id, shadowed.read, other, SHADOW))
            session.flush()
            image.state, image.pixel_sha256 = ImageState.ANALYSED, read.image.pixel_digest
            release(image)
            audit.record(
                session,
                actor=self._actor,
                action="image.analysed",
                subject="prediction",
                subject_id=prediction.id,
                image=image.id,
                input_sha256=prediction.input_sha256,
                bundle_sha256=self._reader.predictor.bundle.sha256,
            )
        return prediction

    def _stands(self, held: Claim) -> None:
        with self._database.write() as session:
            image = still_held(session, held, Image)
            image.state = ImageState.ANALYSED
            release(image)
            audit.record(
                session, actor=self._actor, action="image.prediction_stands", subject="image", subject_id=image.id
            )
        log.info("its prediction stands", image=held.row_id)

    def _not_analysed(self, held: Claim, refused: CannotAnalyse) -> None:
        # A distance says nothing without the model that measured it. No prediction names it here, so the event does.
        details: dict[str, str] = {}
        if refused.distance is not None:
            details = {"distance": f"{refused.distance:.6g}", "bundle_sha256": self._reader.predictor.bundle.sha256}
        with self._database.write() as session:
            image = still_held(session, held, Image)
            image.state, image.reason = ImageState.NOT_ANALYSED, refused.reason
            release(image)
            _audit_no_prediction(session, self._actor, held, refused.reason, **details)
        log.info("not analysed", image=held.row_id, reason=refused.reason.value)

    def _failed(self, held: Claim, error: str, reason: Reason = Reason.FAILED) -> None:
        wait = self._retries.next_wait(held.tries)
        with self._database.write() as session:
            try:
                image = still_held(session, held, Image)
            except LeaseLost:
                return
            session.add(failed_attempt(held, error))
            if wait is None:
                image.state, image.reason = ImageState.FAILED, reason
                release(image)
                _audit_no_prediction(session, self._actor, held, reason)
            else:
                release(image, wait=wait)


def open_dataset(file: Path | BinaryIO, *, pixels: bool = True) -> FileDataset:
    """Read a DICOM file, or all of it before its pixels.

    Raises CannotAnalyse where it is none, and OSError where it cannot be read now.
    """
    try:
        check_inflated_size(file)
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except TooLarge:
        raise CannotAnalyse(Reason.TOO_LARGE) from None
    except MemoryError:
        raise
    except OSError as error:
        # Without a number it is pydicom's own; with one it says nothing about the file's content.
        if error.errno is not None:
            raise
        raise CannotAnalyse(Reason.NOT_DICOM) from None
    except Exception:
        # pydicom raises many kinds, whose texts may hold what is in the file.
        raise CannotAnalyse(Reason.NOT_DICOM) from None


def read_dataset(dataset: FileDataset, predictor: Predictor) -> _Read:
    """Turn a dataset into the model's input and run the model. Raises CannotAnalyse."""
    source = _input_of(dataset, predictor)
    return _Read(source, read_input(source, predictor))


def _input_of(dataset: FileDataset, predictor: Predictor) -> ModelInput:
    try:
        return model_input(dataset, predictor.size)
    except NotAnalysable as refused:
        raise CannotAnalyse(refused.reason) from None


def read_input(source: ModelInput, predictor: Predictor) -> Reading:
    """Run the model. Raises CannotAnalyse where the image is unlike what the model was trained on: it has no answer."""
    reading = predictor.read(source)
    if reading.unfamiliar:
        raise CannotAnalyse(Reason.UNLIKE_TRAINING, distance=reading.distance)
    return reading


def decision_of(reading: Reading) -> Decision:
    """Return the decision for the whole image."""
    decision = overall(finding.decision for finding in reading.findings)
    if decision is None:
        raise ValueError("a reading without findings")
    return decision


def as_png(source: ModelInput) -> bytes:
    """Return the model's input as a lossless 8-bit grey PNG, without any metadata."""
    buffer = io.BytesIO()
    Picture.fromarray(source.pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _prediction(image: Image, model_version_id: int, read: _Read, kept: File, role: str) -> Prediction:
    source, reading = read.image, read.reading
    return Prediction(
        image_id=image.id,
        model_version_id=model_version_id,
        role=role,
        input_sha256=hashlib.sha256(source.pixels.tobytes()).hexdigest(),
        input_file_id=kept.id,
        pixel_sha256=source.pixel_digest,
        pipeline_version=PIPELINE_VERSION,
        software_version=VERSION,
        decision=decision_of(reading),
        milliseconds=reading.milliseconds,
        created_at=clock.now(),
        geometry=geometry(source),
        findings=[_finding(finding, scores) for finding, scores in zip_longest(reading.findings, reading.heatmaps)],
    )


def _finding(reading: FindingReading, scores: Scores | None) -> Finding:
    return Finding(
        code_value=reading.code_value,
        code_scheme=reading.code_scheme,
        code_meaning=reading.code_meaning,
        logit=reading.logit,
        probability=reading.probability,
        absent_below=reading.absent_below,
        present_from=reading.threshold,
        decision=reading.decision,
        score_map=None if scores is None else keep(scores),
        regions=_regions(reading),
    )


def _regions(reading: FindingReading) -> list[Region]:
    if reading.region is None:
        return []
    box = reading.region.box
    return [
        Region(
            x_min=box[0],
            y_min=box[1],
            x_max=box[2],
            y_max=box[3],
            peak_x=reading.peak.x if reading.peak else None,
            peak_y=reading.peak.y if reading.peak else None,
            outline=[[point.x, point.y] for point in reading.region.outline],
        )
    ]


def _audit_no_prediction(session: Session, actor: str, held: Claim, reason: Reason, **details: str) -> None:
    audit.record(
        session,
        actor=actor,
        action="image.not_analysed",
        subject="image",
        subject_id=held.row_id,
        reason=reason.value,
        **details,
    )
