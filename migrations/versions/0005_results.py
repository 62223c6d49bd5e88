"""Score maps of predictions and where they lie, deliveries of what was superseded, and shadow models

Revision ID: 0005
Revises: 0004
Created: 2026-11-26 21:20:04.318842
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not by Alembic's batch mode, which copies the table on SQLite: these need no copy.
    op.add_column("predictions", sa.Column("geometry", sa.JSON(), nullable=True))
    op.add_column("findings", sa.Column("score_map", sa.LargeBinary(), nullable=True))
    op.add_column("predictions", sa.Column("role", sa.String(length=16), server_default="active", nullable=False))
    op.add_column("model_activations", sa.Column("reason", sa.String(length=16), nullable=True))
    op.add_column("deliveries", sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE deliveries SET superseded_at = (SELECT MIN(successor.created_at) FROM reports AS successor "
        "WHERE successor.supersedes_id = deliveries.report_id)"
    )


def downgrade() -> None:
    op.drop_column("deliveries", "superseded_at")
    op.drop_column("model_activations", "reason")
    op.drop_column("predictions", "role")
    op.drop_column("findings", "score_map")
    op.drop_column("predictions", "geometry")
