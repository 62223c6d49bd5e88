"""C-STORE, from the command to the answer: what is safe on disk and on record is answered with success (PS3.4 B.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from dicom_node.file_meta import file_head
from dicom_node.group_commit import GroupCommit, NotRecorded, Undecided
from dicom_node.headers import HeaderError, SourceHeader, is_uid, read_header_file
from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.network.dimse import Command
from dicom_node.network.requests import Context
from dicom_node.objects.recognise import is_own_object
from dicom_node.resends import Compared, compare
from dicom_node.services import Status
from dicom_node.spool import Incoming, Spool, SpoolError
from models import logs
from models.database import Database
from models.settings import Settings

log = logs.get("listener")


@dataclass(frozen=True)
class Stored:
    """The answer to a C-STORE; `why` is the Error Comment, at most 64 characters of ASCII."""

    status: Status
    why: str = ""
    receipt: Receipt | None = None
    """What the instance turned out to be, where it was taken."""
    recorded: bool = False
    """Whether its association is on record now."""


class Storage:
    """Keeps instances. Threads share one.

    Parameters
    ----------
    on_stored
        Called, without arguments, after a new instance was stored; it must return at once and never raise.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        spool: Spool,
        intake: Intake,
        on_stored: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._spool = spool
        self._intake = intake
        self._recorder = GroupCommit(database, intake)
        self._on_stored = on_stored

    def begin(self, context: Context, command: Command, *, may_store: bool) -> Incoming | None:
        """Return the file that a data set goes to; None where the answer is no already."""
        if _refusal(context, command, may_store=may_store) is not None:
            return None
        incoming = self._spool.incoming()
        incoming.write(file_head(command.sop_class_uid, command.sop_instance_uid, context.transfer_syntax))
        incoming.begin_digest()
        return incoming

    def store(
        self,
        association: int,
        sender: Sender,
        context: Context,
        command: Command,
        incoming: Incoming | None,
        *,
        may_store: bool,
    ) -> Stored:
        """Keep an instance that has arrived; its incoming file is for the caller to discard."""
        refusal = _refusal(context, command, may_store=may_store)
        if refusal is not None or incoming is None:
            return refusal or Stored(Status.CANNOT_UNDERSTAND, "no data set")
        try:
            incoming.finish()
            header = read_header_file(incoming.path, default_charset=self._default_charset(sender))
        except SpoolError:
            return Stored(Status.OUT_OF_RESOURCES, "no space to store the instance")
        except HeaderError:
            return Stored(Status.CANNOT_UNDERSTAND, "not a data set with its UIDs")
        if (header.sop_class_uid, header.sop_instance_uid) != (command.sop_class_uid, command.sop_instance_uid):
            return Stored(Status.DATA_SET_MISMATCH, "UIDs of data set and command differ")
        return self._keep(association, sender, context, incoming, header)

    def _keep(
        self, association: int, sender: Sender, context: Context, incoming: Incoming, header: SourceHeader
    ) -> Stored:
        recorded = False
        try:
            receipt = self._intake.known(header.sop_instance_uid, incoming.sha256)
            if receipt is None and is_own_object(header):
                receipt = Receipt.OWN
            if receipt is None or receipt is Receipt.AGAIN:
                receipt = self._record(sender, context, incoming, header, again=receipt is Receipt.AGAIN)
                recorded = True
        except SpoolError:
            return Stored(Status.OUT_OF_RESOURCES, "no space to store the instance")
        except (SQLAlchemyError, NotRecorded, Undecided) as error:
            log.error("database refused", association=association, exc_info=error.__cause__ or error)
            return Stored(Status.OUT_OF_RESOURCES, "the record cannot be written")
        flaws = {"unusable": " ".join(header.unusable)} if header.unusable else {}
        log.info("instance stored", association=association, receipt=receipt.value, bytes=incoming.size, **flaws)
        if receipt is Receipt.NEW:
            self._on_stored()
        if receipt.is_conflict:
            status = Status(int(self._settings.listener.other_pixels_status, 16))
            why = "" if status is Status.SUCCESS else "the UID is that of another instance"
            return Stored(status, why, receipt, recorded)
        return Stored(Status.SUCCESS, "", receipt, recorded)

    def _default_charset(self, sender: Sender) -> str | None:
        sources = (peer for peer in self._settings.sources if peer.ae_title == sender.calling_ae_title)
        return next((peer.default_charset for peer in sources), None)

    def _compare(self, header: SourceHeader, incoming: Incoming) -> Compared | None:
        with incoming.path.open("rb") as file:
            return compare(self._database, self._spool, header.sop_instance_uid, file)

    def _record(
        self, sender: Sender, context: Context, incoming: Incoming, header: SourceHeader, *, again: bool
    ) -> Receipt:
        compared = self._compare(header, incoming) if again else None
        key = self._spool.put_durable(incoming)
        stored = StoredFile(
            key=key,
            size=incoming.size,
            sha256=incoming.sha256,
            digest_offset=incoming.digest_offset,
            transfer_syntax_uid=str(context.transfer_syntax),
            again=again,
            compared=compared,
        )
        try:
            receipt = self._recorder.record(sender, header, stored)
        except NotRecorded:
            self._spool.delete(key)
            raise
        if receipt.needs_no_file:
            self._spool.delete(key)
        return receipt


def _refusal(context: Context, command: Command, *, may_store: bool) -> Stored | None:
    """Return the answer that command and presentation context make certain."""
    if not may_store:
        return Stored(Status.NOT_AUTHORISED, "this calling AE may not store")
    if command.sop_class_uid != context.abstract_syntax:
        return Stored(Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context")
    if not command.has_data_set:
        return Stored(Status.CANNOT_UNDERSTAND, "no data set")
    if not is_uid(command.sop_instance_uid):
        return Stored(Status.DATA_SET_MISMATCH, "UIDs of data set and command differ")
    return None
