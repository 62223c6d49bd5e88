"""Runs revisions on the connection that `models.upgrade` hands over, then puts the append-only guards in place."""

from __future__ import annotations

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from models.append_only import protect
from models.tables import Base
from models.tables.base import Utc


def render_item(kind: str, item: object, _context: AutogenContext) -> str | Literal[False]:
    """Write our own column type as the plain type it stands for: revisions are frozen and import no models."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, Utc) else False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    compare_server_default=True,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
    if not context.config.attributes.get("comparing", False):
        protect(connection)
