"""Indexes that keep a million studies quick, studies that are held up, and what a study's newest report says

Revision ID: 0003
Revises: 0002
Created: 2026-11-26 14:45:10.118204
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WORKLIST = ("patient_id", "accession_number", "calling_ae_title", "study_date", "decision", "state")
PARTIAL = (
    ("ix_images_sop_instance_uid_replaced", "images", ("sop_instance_uid",), "replaced_at IS NOT NULL"),
    ("ix_quarantine_unresolved", "quarantine", ("id",), "resolved_at IS NULL"),
    ("ix_reports_supersedes_id", "reports", ("supersedes_id",), "supersedes_id IS NOT NULL"),
    (
        "ix_deliveries_destination_commit_due_at",
        "deliveries",
        ("destination", "commit_due_at"),
        "commit_due_at IS NOT NULL",
    ),
)
DROPPED: tuple[tuple[str, ...], ...] = (
    ("state", "rank_at", "id"),
    ("patient_id",),
    ("accession_number",),
    ("last_image_at",),
)


def upgrade() -> None:
    # Not by Alembic's batch mode, which copies the table on SQLite: these need no copy.
    op.add_column("studies", sa.Column("held_up", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("studies", sa.Column("decision", sa.String(length=16), nullable=True))
    op.execute(
        "UPDATE studies SET decision = (SELECT impression FROM reports WHERE reports.study_id = studies.id "
        "ORDER BY revision DESC LIMIT 1)"
    )
    for columns in DROPPED:
        op.drop_index(op.f(f"ix_studies_{'_'.join(columns)}"), table_name="studies")
    for columns in _new():
        op.create_index(op.f(f"ix_studies_{'_'.join(columns)}"), "studies", list(columns), unique=False)
    op.create_index(op.f("ix_resends_association_id"), "resends", ["association_id"], unique=False)
    for name, table, covered, condition in PARTIAL:
        op.create_index(
            op.f(name),
            table,
            list(covered),
            unique=False,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )


def downgrade() -> None:
    for name, table, _, _ in PARTIAL:
        op.drop_index(op.f(name), table_name=table)
    op.drop_index(op.f("ix_resends_association_id"), table_name="resends")
    for columns in _new():
        op.drop_index(op.f(f"ix_studies_{'_'.join(columns)}"), table_name="studies")
    for columns in DROPPED:
        op.create_index(op.f(f"ix_studies_{'_'.join(columns)}"), "studies", list(columns), unique=False)
    op.drop_column("studies", "decision")
    op.drop_column("studies", "held_up")


def _new() -> list[tuple[str, ...]]:
    """The new indexes of studies."""
    searched = [(column, "first_image_at", "id") for column in WORKLIST]
    return [("state", "held_up", "rank_at", "id"), ("first_image_at", "id"), *searched]
