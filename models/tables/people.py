"""Who may sign in to the console, and who is signed in."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, BigId


class User(Base):
    """A local account, or one of an OpenID provider. Never deleted: audit events name it."""

    __tablename__ = "users"
    __table_args__ = (Index(None, "issuer", "subject", unique=True),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """In lower case."""
    password_hash: Mapped[str] = mapped_column(Text)
    """Argon2id, with its parameters and salt; empty, which no password fits, for an account of a provider."""
    roles: Mapped[str] = mapped_column(String(64))
    """Of `console.access.Role`, separated by commas."""
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    """Tries with a wrong password since the last that was right."""
    locked_until: Mapped[datetime | None]
    """Nobody is let in before this time, whatever the password: grows with `failures`."""
    issuer: Mapped[str | None] = mapped_column(String(255))
    """The OpenID provider that vouches for this person; None for a local account."""
    subject: Mapped[str | None] = mapped_column(String(255))
    """Who it is to that provider (OpenID Connect Core 1.0, section 2: `sub`), whatever they are called."""


class WebSession(Base):
    """Somebody who signed in to the console, until `ended_at`, or until nothing was heard for too long."""

    __tablename__ = "web_sessions"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Digest of what the browser shows; that itself is nowhere on record."""
    began_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
