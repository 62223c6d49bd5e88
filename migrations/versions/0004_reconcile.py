"""Indexes by which spool and record are compared without reading the rows

Revision ID: 0004
Revises: 0003
Created: 2026-11-26 18:20:41.502913
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PARTIAL = (
    ("ix_files_key_removed_at", "removed_at"),
    ("ix_files_key_missing_at", "missing_at"),
)


def upgrade() -> None:
    for name, column in PARTIAL:
        is_set = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            op.f(name), "files", ["key", column], unique=False, sqlite_where=is_set, postgresql_where=is_set
        )


def downgrade() -> None:
    for name, _ in PARTIAL:
        op.drop_index(op.f(name), table_name="files")
