"""What goes out: reports as bytes, what they rest on, and their way to each destination."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.tables.base import Base, BigId, Claimable, state_column


class DeliveryState(StrEnum):
    """`due → delivered (→ committed where asked) | needs_attention | cancelled`."""

    DUE = "due"
    DELIVERED = "delivered"
    COMMITTED = "committed"
    NEEDS_ATTENTION = "needs_attention"
    CANCELLED = "cancelled"


_SUPERSEDES = text("supersedes_id IS NOT NULL")


class Report(Base):
    """One object to send, mostly a report. Its bytes are stored before they are first sent, and sent ever after."""

    __tablename__ = "reports"
    __append_only__ = True
    __table_args__ = (
        UniqueConstraint("study_id", "kind", "revision"),
        Index(None, "supersedes_id", sqlite_where=_SUPERSEDES, postgresql_where=_SUPERSEDES),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    kind: Mapped[str] = mapped_column(String(32))
    """One of `models.settings.ObjectKind`, or `hl7_oru`."""
    revision: Mapped[int]
    """Counts the objects of this kind in the study, from 1."""
    generation: Mapped[int]
    """Of the study, when it was made."""
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    impression: Mapped[str] = mapped_column(String(16))
    content: Mapped[bytes] = mapped_column(LargeBinary)
    """The DICOM file (PS3.10), or the HL7 message."""
    sha256: Mapped[str] = mapped_column(String(64))
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("reports.id"))
    created_at: Mapped[datetime]

    inputs: Mapped[list[ReportInput]] = relationship()
    supersedes: Mapped[Report | None] = relationship(remote_side=[id])


class ReportInput(Base):
    """An image that a report speaks of, and the prediction it rests on, or the reason why there is none."""

    __tablename__ = "report_inputs"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), index=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), index=True)
    prediction_id: Mapped[int | None] = mapped_column(ForeignKey("predictions.id"))
    reason: Mapped[str | None] = mapped_column(String(64))


_ASKED = text("commit_due_at IS NOT NULL")


class Delivery(Claimable, Base):
    """One report on its way to one destination."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("report_id", "destination"),
        Index(None, "state", "rank_at", "id"),
        Index(None, "study_id", "destination", "state"),
        Index(None, "destination", "state", "rank_at", "id"),
        Index(None, "commit_due_at", sqlite_where=_ASKED, postgresql_where=_ASKED),
        Index(None, "destination", "commit_due_at", sqlite_where=_ASKED, postgresql_where=_ASKED),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"))
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    destination: Mapped[str] = mapped_column(String(64))
    """The peer's name in the settings."""
    state: Mapped[DeliveryState] = mapped_column(state_column(DeliveryState), default=DeliveryState.DUE)
    reason: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int | None]
    """The last C-STORE status, where the destination gave one (PS3.7 Annex C)."""
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]
    """Since when a newer object of the study says what this one said: what was not sent then is not sent any more."""
    delivered_at: Mapped[datetime | None]
    commit_due_at: Mapped[datetime | None]
    """When the destination is asked next to commit what it was sent; empty where it is not asked."""
    commit_tries: Mapped[int] = mapped_column(default=0)
    committed_at: Mapped[datetime | None]

    report: Mapped[Report] = relationship()


class DestinationState(Base):
    """How it stands with one destination: one courier at a time sends to it, and one that is down is left in peace."""

    __tablename__ = "destinations"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """The peer's name in the settings."""
    failures: Mapped[int] = mapped_column(default=0)
    """Associations that failed since the last that did not."""
    due_at: Mapped[datetime]
    """Not before this time: grows with `failures`."""
    reason: Mapped[str | None] = mapped_column(String(64))
    reached_at: Mapped[datetime | None]
    """When it last accepted an association."""
    lease_until: Mapped[datetime | None]
    lease_holder: Mapped[str | None] = mapped_column(String(128))
    lease_token: Mapped[int] = mapped_column(BigId, default=0)


class DeliveryAttempt(Base):
    """One try to send."""

    __tablename__ = "delivery_attempts"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), index=True)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime]
    outcome: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]


class Commitment(Base):
    """What one storage commitment transaction (PS3.4 Annex J) asked of a destination for one delivery."""

    __tablename__ = "commitments"
    __table_args__ = (UniqueConstraint("transaction_uid", "delivery_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), index=True)
    transaction_uid: Mapped[str] = mapped_column(String(64))
    requested_at: Mapped[datetime]
    accepted_at: Mapped[datetime | None]
    """When the destination accepted the request (N-ACTION)."""
    answered_at: Mapped[datetime | None]
    failure_reason: Mapped[int | None]
    """Of its answer (PS3.3 C.14); empty where it committed."""


class CommitmentRequestState(StrEnum):
    """`due → answered | needs_attention`."""

    DUE = "due"
    ANSWERED = "answered"
    NEEDS_ATTENTION = "needs_attention"


class CommitmentRequest(Claimable, Base):
    """What a sender asked us to commit; kept until it was answered."""

    __tablename__ = "commitment_requests"
    __table_args__ = (UniqueConstraint("peer", "transaction_uid"), Index(None, "state", "rank_at", "id"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    peer: Mapped[str] = mapped_column(String(64))
    """The sender's name in the settings."""
    transaction_uid: Mapped[str] = mapped_column(String(64))
    instances: Mapped[list[list[str]]] = mapped_column(JSON)
    """SOP Class UID and SOP Instance UID of each."""
    received_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[CommitmentRequestState] = mapped_column(
        state_column(CommitmentRequestState), default=CommitmentRequestState.DUE
    )
