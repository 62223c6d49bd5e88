"""Who did what to what, chained so that a change or a cut is seen; and what people say of the predictions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, BigId


class Review(Base):
    """A person's verdict on a prediction."""

    __tablename__ = "reviews"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    prediction_id: Mapped[int] = mapped_column(ForeignKey("predictions.id"), index=True)
    reviewer: Mapped[str] = mapped_column(String(128))
    agrees: Mapped[bool]
    why: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class AuditEvent(Base):
    """Something that was done. Details hold row ids and digests, never patient data."""

    __tablename__ = "audit_events"
    __append_only__ = True
    __table_args__ = (
        Index(None, "subject", "subject_id"),
        # What people search by (models.audit_search), each with its order.
        Index(None, "at", "id"),
        Index(None, "actor", "at", "id"),
        Index(None, "action", "at", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(32))
    subject_id: Mapped[int | None] = mapped_column(BigId)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class AuditChain(Base):
    """An event's place in the chain: `hash` covers the event and the hash before it."""

    __tablename__ = "audit_chain"
    __append_only__ = True

    seq: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    event_id: Mapped[int] = mapped_column(ForeignKey("audit_events.id"), unique=True)
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
