"""Examine an instance that came again: decode it and the image on record, and say whether the pixels are the same.

Only what the bytes do not tell comes here (`dicom_node.resends`): another transfer syntax, mostly. What was compressed
with loss has other pixels. What cannot be compared, because either cannot be decoded or the first file is gone and its
pixels' digest is not on record, is quarantined with a reason of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import FileDataset
from sqlalchemy import select

from dicom_node.pixels import NotAnalysable, source_pixels_digest
from dicom_node.quarantine import NOT_COMPARED
from dicom_node.resends import conflict, decide
from dicom_node.spool import Spool
from models import audit, clock, logs
from models.database import Database
from models.reasons import Reason
from models.settings import Settings
from models.tables import Attempt, File, FileKind, Image, Resend, ResendState, Study
from worker.analyse import CannotAnalyse, open_dataset
from worker.claims import Claim, LeaseLost, Work, claim, holder, release, still_held, time_limit
from worker.leases import kept_alive
from worker.retries import ENDED_WITHOUT_A_WORD, RetryPolicy
from worker.troubles import Troubles, is_the_nodes

_NO_PIXELS = "none"
log = logs.get("examine")


@dataclass(frozen=True)
class _Pixels:
    """Decoded pixels: their digest, and whether white is low, which the digest of stored values does not tell."""

    digest: str
    inverted: bool | None = None

    def same_as(self, other: _Pixels) -> bool:
        turned = None not in (self.inverted, other.inverted) and self.inverted != other.inverted
        return self.digest == other.digest and not turned


class Examiner:
    """Examines one instance at a time."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings
        self._database = database
        self._spool = spool
        self._limit = time_limit(Work.EXAMINE, settings)
        analysis = settings.analysis
        self._retries = RetryPolicy(first=analysis.first_wait, longest=analysis.longest_wait, most=analysis.max_tries)
        self._troubles = Troubles(database)
        self._actor = audit.part_actor("worker")
        self.out_of_memory = False
        """Whether this process got no memory once: it is better replaced."""

    def examine_next(self) -> bool:
        """Claim the most urgent resend and examine it. Return whether there was one."""
        if self._troubles.hold_back():
            return False
        held = claim(self._database, Work.EXAMINE, limit=self._limit)
        if held is None:
            return False
        with kept_alive(self._database, held.lease):
            try:
                self._examine(held)
                self._troubles.passed()
            except LeaseLost:
                log.warning("lease lost", resend=held.row_id)
            except Exception as error:
                self.out_of_memory = self.out_of_memory or isinstance(error, MemoryError)
                if is_the_nodes(error, self._spool):
                    self._troubles.met(held, logs.describe(error))
                    return True
                log.error("examination failed", resend=held.row_id, tries=held.tries, exc_info=error)
                self._failed(held, logs.describe(error))
        return True

    def _examine(self, held: Claim) -> None:
        if self._retries.used_up(held.tries):
            self._failed(held, ENDED_WITHOUT_A_WORD)
            return
        with self._database.read() as session:
            resend = session.get_one(Resend, held.row_id)
            newcomer = session.get_one(File, resend.file_id)
            known = session.scalars(select(Image.pixel_sha256).where(Image.id == resend.image_id)).one()
            file = session.scalars(
                select(File).where(File.image_id == resend.image_id, File.kind == FileKind.INSTANCE)
            ).first()
        try:
            first = self._pixels(file)
        except FileNotFoundError:
            if known is None:
                raise
            first = None
        if first is None and known is not None:
            first = _Pixels(known)
        self._record(held, first, self._pixels(newcomer))

    def _pixels(self, file: File | None) -> _Pixels | None:
        """Decode a file; None where retention removed it, or where it cannot be decoded. Raises OSError."""
        if file is None or file.removed_at is not None:
            return None
        try:
            with self._spool.open(file.key) as opened:
                dataset = open_dataset(opened)
            return _Pixels(source_pixels_digest(dataset), _inverted(dataset))
        except NotAnalysable as refused:
            return _Pixels(_NO_PIXELS) if refused.reason is Reason.NO_PIXELS else None
        except CannotAnalyse:
            return None

    def _record(self, held: Claim, first: _Pixels | None, other: _Pixels | None) -> None:
        with self._database.write() as session:
            resend = still_held(session, held, Resend)
            study = session.scalars(select(Study).where(Study.id == resend.study_id).with_for_update()).one()
            image = session.scalars(select(Image).where(Image.id == resend.image_id).with_for_update()).one()
            release(resend)
            if first is not None and first.digest != _NO_PIXELS:
                image.pixel_sha256 = first.digest
            if first is None or other is None or image.replaced_at is not None:
                conflict(session, self._actor, study, image, resend, NOT_COMPARED)
            else:
                decide(session, self._settings, self._actor, study, image, resend, first.same_as(other))
            state = resend.state
        log.info("examined", resend=held.row_id, image=image.id, state=state.value)

    def _failed(self, held: Claim, error: str) -> None:
        wait = self._retries.next_wait(held.tries)
        with self._database.write() as session:
            try:
                resend = still_held(session, held, Resend)
            except LeaseLost:
                return
            session.add(
                Attempt(
                    image_id=resend.image_id,
                    lease_token=held.token,
                    holder=holder(),
                    ended_at=clock.now(),
                    error=error,
                )
            )
            if wait is not None:
                release(resend, wait=wait)
                return
            study = session.scalars(select(Study).where(Study.id == resend.study_id).with_for_update()).one()
            image = session.get_one(Image, resend.image_id)
            release(resend)
            conflict(session, self._actor, study, image, resend, NOT_COMPARED, state=ResendState.FAILED)


def _inverted(dataset: FileDataset) -> bool | None:
    photometric = dataset.get("PhotometricInterpretation")
    return None if photometric not in ("MONOCHROME1", "MONOCHROME2") else photometric == "MONOCHROME1"
