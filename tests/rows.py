"""The rows of a record, for tests to look at."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from models.database import Database


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
