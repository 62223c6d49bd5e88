"""The rows of a record, for tests to look at."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models import clock
from models.database import Database
from models.tables import Delivery


class Rows:
    """What has a record; its rows by their ids."""

    database: Database

    def all(self, table: type[Any]) -> list[Any]:
        """All rows of a table."""
        with self.database.read() as session:
            return list(session.scalars(select(table).order_by(table.id)))

    def only(self, table: type[Any]) -> Any:
        """The one row of a table."""
        (row,) = self.all(table)
        return row


def supersede(session: Session, report_id: int) -> None:
    """Mark every delivery of a report, as the worker does where a newer one says what it said."""
    session.execute(
        update(Delivery)
        .where(Delivery.report_id == report_id, Delivery.superseded_at.is_(None))
        .values(superseded_at=clock.now())
    )
