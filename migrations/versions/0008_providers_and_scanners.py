"""Accounts of an OpenID provider, and the scanner that made an image

Revision ID: 0008
Revises: 0007
Created: 2026-11-27 01:00:00.000000
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("issuer", sa.String(length=255), nullable=True))
    op.add_column("users", sa.Column("subject", sa.String(length=255), nullable=True))
    op.create_index(op.f("ix_users_issuer_subject"), "users", ["issuer", "subject"], unique=True)
    op.add_column("images", sa.Column("scanner", sa.String(length=64), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("images", "scanner")
    op.drop_index(op.f("ix_users_issuer_subject"), "users")
    op.drop_column("users", "subject")
    op.drop_column("users", "issuer")
