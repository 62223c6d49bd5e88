"""What came in: associations, studies, images, where their bytes lie, and what contradicts what we have."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.tables.base import Base, BigId, Claimable, state_column


class StudyState(StrEnum):
    """`receiving → complete → reported`, and back to `receiving` when an image comes late."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    REPORTED = "reported"
    NEEDS_ATTENTION = "needs_attention"


class ImageState(StrEnum):
    """`received → analysed | not_analysed(reason) | failed`."""

    RECEIVED = "received"
    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"


class FileKind(StrEnum):
    """What a file in the spool is."""

    INSTANCE = "instance"
    MODEL_INPUT = "model_input"
    QUARANTINED = "quarantined"
    RESEND = "resend"
    """An instance that came again with other bytes."""


class ResendState(StrEnum):
    """`waiting → revision | conflict`, or `failed` where the two could not be compared."""

    WAITING = "waiting"
    REVISION = "revision"
    CONFLICT = "conflict"
    FAILED = "failed"


_OPEN = text("closed_at IS NULL")


class Association(Base):
    """An association that brought at least one instance. Open while `closed_at` is empty and `seen_at` is recent."""

    __tablename__ = "associations"
    # Listeners count what others hold open, among all that ever were.
    __table_args__ = (Index(None, "seen_at", sqlite_where=_OPEN, postgresql_where=_OPEN),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(String(36), unique=True)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    called_ae_title: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    opened_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))


class Study(Claimable, Base):
    """A study: identity for look-up, when it is complete, and which generation of it was reported."""

    __tablename__ = "studies"
    __table_args__ = (
        Index(None, "state", "held_up", "rank_at", "id"),
        Index(None, "state", "quiet_until"),
        # What the worklist searches by (models.worklist), each with its order.
        Index(None, "first_image_at", "id"),
        Index(None, "patient_id", "first_image_at", "id"),
        Index(None, "accession_number", "first_image_at", "id"),
        Index(None, "calling_ae_title", "first_image_at", "id"),
        Index(None, "study_date", "first_image_at", "id"),
        Index(None, "decision", "first_image_at", "id"),
        Index(None, "state", "first_image_at", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    patient_name: Mapped[str]
    patient_id: Mapped[str]
    issuer_of_patient_id: Mapped[str]
    patient_birth_date: Mapped[str]
    patient_sex: Mapped[str] = mapped_column(String(16))
    accession_number: Mapped[str]
    study_date: Mapped[str] = mapped_column(String(32))
    study_description: Mapped[str]
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    urgent: Mapped[bool] = mapped_column(default=False)
    state: Mapped[StudyState] = mapped_column(state_column(StudyState), default=StudyState.RECEIVING)
    reason: Mapped[str | None] = mapped_column(String(64))
    generation: Mapped[int] = mapped_column(default=0)
    """Grows by one with each new image; a report is bound to the generation it was made from."""
    first_image_at: Mapped[datetime]
    last_image_at: Mapped[datetime]
    quiet_until: Mapped[datetime]
    """Complete from here on, if no association that fed it is open."""
    complete_by: Mapped[datetime]
    """Complete from here on, whatever is open."""
    completed_at: Mapped[datetime | None]
    held_up: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Complete, but images or resends wait, when the sweeper last looked: claims pass it over without looking."""
    decision: Mapped[str | None] = mapped_column(String(16))
    """What its newest report says: fracture, no_fracture or undetermined."""

    images: Mapped[list[Image]] = relationship(back_populates="study", order_by="Image.id")


_CURRENT = text("replaced_at IS NULL")
_REPLACED = text("replaced_at IS NOT NULL")


class Image(Claimable, Base):
    """One SOP instance as it was received first. One that a person replaced by another keeps its row."""

    __tablename__ = "images"
    __table_args__ = (
        Index(None, "state", "rank_at", "id"),
        Index(None, "study_id", "state"),
        Index(None, "sop_instance_uid", unique=True, sqlite_where=_CURRENT, postgresql_where=_CURRENT),
        Index(
            "ix_images_sop_instance_uid_replaced",
            "sop_instance_uid",
            sqlite_where=_REPLACED,
            postgresql_where=_REPLACED,
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    association_id: Mapped[int] = mapped_column(ForeignKey("associations.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16))
    body_part: Mapped[str] = mapped_column(String(64))
    view: Mapped[str] = mapped_column(String(64))
    laterality: Mapped[str] = mapped_column(String(16))
    scanner: Mapped[str] = mapped_column(String(64), default="", server_default="")
    """Which equipment made it (`SourceHeader.scanner`); empty for images from before this was kept."""
    header: Mapped[str] = mapped_column(Text)
    """What a report needs of the header (`dicom_node.headers.SourceHeader` as JSON), kept when the file is gone."""
    is_image: Mapped[bool]
    """False for objects that have no place in a report's image library: reports, presentation states, …"""
    received_at: Mapped[datetime]
    dataset_sha256: Mapped[str] = mapped_column(String(64))
    """Digest of the data set's bytes as received, without the file meta information."""
    pixel_sha256: Mapped[str | None] = mapped_column(String(64))
    """Digest of the decoded stored pixel values; known once the image was decoded."""
    state: Mapped[ImageState] = mapped_column(state_column(ImageState), default=ImageState.RECEIVED)
    reason: Mapped[str | None] = mapped_column(String(64))
    replaced_at: Mapped[datetime | None]
    """Since when it counts for nothing any more: a person put another instance in its place, or excluded it."""

    study: Mapped[Study] = relationship(back_populates="images")


class Resend(Claimable, Base):
    """An instance that came again under its UID with other bytes: the same pixels make a header revision, others a
    conflict. What the bytes do not tell waits for the worker, which decodes both."""

    __tablename__ = "resends"
    __table_args__ = (Index(None, "state", "rank_at", "id"), UniqueConstraint("image_id", "dataset_sha256"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"))
    association_id: Mapped[int] = mapped_column(ForeignKey("associations.id"), index=True)
    file_id: Mapped[int] = mapped_column(ForeignKey("files.id"))
    dataset_sha256: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    header: Mapped[str] = mapped_column(Text)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    state: Mapped[ResendState] = mapped_column(state_column(ResendState), default=ResendState.WAITING)


class HeaderRevision(Base):
    """The same pixels came again with another header."""

    __tablename__ = "header_revisions"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), index=True)
    received_at: Mapped[datetime]
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    dataset_sha256: Mapped[str] = mapped_column(String(64))
    file_id: Mapped[int | None] = mapped_column(ForeignKey("files.id"))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    header: Mapped[str] = mapped_column(Text)
    changed: Mapped[list[str]] = mapped_column(JSON)
    """Keywords of the attributes that differ, without their values."""


_UNRESOLVED = text("resolved_at IS NULL")


class Quarantine(Base):
    """What contradicts what we have; waits for a person."""

    __tablename__ = "quarantine"
    __table_args__ = (Index("ix_quarantine_unresolved", "id", sqlite_where=_UNRESOLVED, postgresql_where=_UNRESOLVED),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    image_id: Mapped[int | None] = mapped_column(ForeignKey("images.id"), index=True)
    file_id: Mapped[int | None] = mapped_column(ForeignKey("files.id"))
    reason: Mapped[str] = mapped_column(String(64))
    dataset_sha256: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None] = mapped_column(String(64))
    resolved_by: Mapped[str | None] = mapped_column(String(128))


_REMOVED = text("removed_at IS NOT NULL")
_MISSING = text("missing_at IS NOT NULL")


class File(Base):
    """Where bytes lie now. Retention removes the file and sets `removed_at`; the records stay."""

    __tablename__ = "files"
    # With these, reconciliation reads keys from indexes alone. None of them grows when an instance is received.
    __table_args__ = (
        UniqueConstraint("key"),
        Index("ix_files_key_removed_at", "key", "removed_at", sqlite_where=_REMOVED, postgresql_where=_REMOVED),
        Index("ix_files_key_missing_at", "key", "missing_at", sqlite_where=_MISSING, postgresql_where=_MISSING),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), index=True)
    kind: Mapped[FileKind] = mapped_column(state_column(FileKind))
    key: Mapped[str] = mapped_column(String(64))
    """The spool's opaque key."""
    size: Mapped[int] = mapped_column(BigId)
    sha256: Mapped[str] = mapped_column(String(64))
    """Digest of the bytes from `digest_offset` to the end."""
    digest_offset: Mapped[int] = mapped_column(default=0)
    """Where a data set begins behind its file meta information; 0 for files that are not DICOM."""
    stored_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]
    """When retention removed it."""
    missing_at: Mapped[datetime | None]
    """When reconciliation first found that it is gone although nobody removed it."""
