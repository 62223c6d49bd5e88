"""Indexes by which audit events are searched

Revision ID: 0006
Revises: 0005
Created: 2026-11-26 21:55:12.640177
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SEARCHED: tuple[tuple[str, ...], ...] = (("at", "id"), ("actor", "at", "id"), ("action", "at", "id"))


def upgrade() -> None:
    for columns in SEARCHED:
        op.create_index(op.f(f"ix_audit_events_{'_'.join(columns)}"), "audit_events", list(columns), unique=False)


def downgrade() -> None:
    for columns in SEARCHED:
        op.drop_index(op.f(f"ix_audit_events_{'_'.join(columns)}"), table_name="audit_events")
