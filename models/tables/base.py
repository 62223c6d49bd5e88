"""What all tables share: column types, the columns of claimable work, and the installation itself."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Enum, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine

# SQLite only counts up a column declared INTEGER.
BigId = BigInteger().with_variant(Integer, "sqlite")


class Utc(TypeDecorator[datetime]):
    """A moment in UTC. `timestamptz` on PostgreSQL; ISO text without zone on SQLite, which knows none.

    Refuses naive datetimes: a moment without a zone is a mistake of the caller.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return timezone-aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def state_column(states: type[StrEnum]) -> TypeEngine[Any]:
    """Return the type of a column that holds one of `states`, as text with a CHECK constraint."""
    return Enum(
        states,
        native_enum=False,
        create_constraint=True,
        length=24,
        name=states.__name__.lower(),
        values_callable=lambda members: [member.value for member in members],
    )


class Base(DeclarativeBase):
    """Base of all tables. A table whose `__append_only__` is True is guarded by `models.append_only`."""

    __append_only__ = False

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Utc(), str: String()}  # noqa: RUF012 (SQLAlchemy reads it from the class)


class Claimable:
    """Columns of a row that is work: who holds it, until when, and with which fencing token (see `worker.claims`)."""

    rank_at: Mapped[datetime]
    """Work is done in this order: the time it came, less the head start of urgent work, so that nothing starves."""
    due_at: Mapped[datetime]
    """Not before this time: grows with each failed try."""
    tries: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    lease_holder: Mapped[str | None] = mapped_column(String(128))
    lease_token: Mapped[int] = mapped_column(BigId, default=0)
    """Grows with each claim; a holder whose token is no longer the row's may not write."""


class Installation(Base):
    """The one row that names this installation; part of every report's UID."""

    __tablename__ = "installation"
    __append_only__ = True

    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
