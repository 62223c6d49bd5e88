"""Resends, destinations, storage commitment, and files that went missing

Revision ID: 0002
Revises: 0001
Created: 2026-11-26 10:47:45.471157
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


IMAGE_STATES = ("received", "analysed", "not_analysed", "failed")
DELIVERY_STATES = ("due", "delivered", "committed", "needs_attention", "cancelled")
FILE_KINDS = ("instance", "model_input", "quarantined", "resend")


def upgrade() -> None:
    op.create_table(
        "commitment_requests",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "due",
                "answered",
                "needs_attention",
                name="commitmentrequeststate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("rank_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_holder", sa.String(length=128), nullable=True),
        sa.Column("lease_token", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_requests")),
        sa.UniqueConstraint("peer", "transaction_uid", name=op.f("uq_commitment_requests_peer_transaction_uid")),
    )
    with op.batch_alter_table("commitment_requests", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_commitment_requests_state_rank_at_id"), ["state", "rank_at", "id"], unique=False
        )

    op.create_table(
        "destinations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("reached_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_holder", sa.String(length=128), nullable=True),
        sa.Column("lease_token", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_destinations")),
        sa.UniqueConstraint("name", name=op.f("uq_destinations_name")),
    )
    op.create_table(
        "resends",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("association_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("file_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_sha256", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("header", sa.Text(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting",
                "revision",
                "conflict",
                "failed",
                name="resendstate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("rank_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_holder", sa.String(length=128), nullable=True),
        sa.Column("lease_token", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"], ["associations.id"], name=op.f("fk_resends_association_id_associations")
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_resends_file_id_files")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_resends_image_id_images")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_resends_study_id_studies")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_resends")),
        sa.UniqueConstraint("image_id", "dataset_sha256", name=op.f("uq_resends_image_id_dataset_sha256")),
    )
    with op.batch_alter_table("resends", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_resends_state_rank_at_id"), ["state", "rank_at", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_resends_study_id"), ["study_id"], unique=False)

    with op.batch_alter_table("commitments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.drop_constraint(batch_op.f("uq_commitments_transaction_uid"), type_="unique")
        batch_op.create_unique_constraint(
            batch_op.f("uq_commitments_transaction_uid_delivery_id"), ["transaction_uid", "delivery_id"]
        )

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.add_column(sa.Column("commit_due_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("commit_tries", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("committed_at", sa.DateTime(timezone=True), nullable=True))

    # The default was for the rows that are there.
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.alter_column("commit_tries", server_default=None)
        _check_again(batch_op, "deliverystate", DELIVERY_STATES)
        batch_op.create_index(
            batch_op.f("ix_deliveries_destination_state_rank_at_id"),
            ["destination", "state", "rank_at", "id"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_deliveries_commit_due_at"),
            ["commit_due_at"],
            unique=False,
            sqlite_where=sa.text("commit_due_at IS NOT NULL"),
            postgresql_where=sa.text("commit_due_at IS NOT NULL"),
        )
    op.execute(
        "INSERT INTO destinations (name, failures, due_at, lease_token) "
        "SELECT destination, 0, min(created_at), 0 FROM deliveries GROUP BY destination"
    )

    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.add_column(sa.Column("missing_at", sa.DateTime(timezone=True), nullable=True))
        _check_again(batch_op, "filekind", FILE_KINDS, column="kind")

    with op.batch_alter_table("header_revisions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("file_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
        # Nothing wrote this table before.
        batch_op.add_column(sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False))
        batch_op.create_foreign_key(batch_op.f("fk_header_revisions_file_id_files"), "files", ["file_id"], ["id"])

    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.drop_constraint(batch_op.f("uq_images_sop_instance_uid"), type_="unique")
        _check_again(batch_op, "imagestate", IMAGE_STATES)
        batch_op.create_index(
            batch_op.f("ix_images_sop_instance_uid"),
            ["sop_instance_uid"],
            unique=True,
            sqlite_where=sa.text("replaced_at IS NULL"),
            postgresql_where=sa.text("replaced_at IS NULL"),
        )

    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.add_column(sa.Column("resolved_by", sa.String(length=128), nullable=True))

    with op.batch_alter_table("associations", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_associations_seen_at"),
            ["seen_at"],
            unique=False,
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        )


def _check_again(batch_op: BatchOperations, name: str, values: tuple[str, ...], *, column: str = "state") -> None:
    """Put the CHECK constraint of a column of states in place, with these values.

    Alembic does not see CHECK constraints when it copies a SQLite table, so that a copy has lost them.
    """
    table = batch_op.impl.table_name
    if op.get_bind().dialect.name != "sqlite":
        batch_op.drop_constraint(batch_op.f(f"ck_{table}_{name}"), type_="check")
    batch_op.create_check_constraint(batch_op.f(f"ck_{table}_{name}"), sa.column(column).in_(values))


def downgrade() -> None:
    with op.batch_alter_table("associations", schema=None) as batch_op:
        batch_op.drop_index(
            batch_op.f("ix_associations_seen_at"),
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        )

    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_column("resolved_by")

    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.drop_index(
            batch_op.f("ix_images_sop_instance_uid"),
            sqlite_where=sa.text("replaced_at IS NULL"),
            postgresql_where=sa.text("replaced_at IS NULL"),
        )
        batch_op.create_unique_constraint(batch_op.f("uq_images_sop_instance_uid"), ["sop_instance_uid"])
        _check_again(batch_op, "imagestate", IMAGE_STATES)
        batch_op.drop_column("replaced_at")

    with op.batch_alter_table("header_revisions", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_header_revisions_file_id_files"), type_="foreignkey")
        batch_op.drop_column("transfer_syntax_uid")
        batch_op.drop_column("file_id")

    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.drop_column("missing_at")
        _check_again(batch_op, "filekind", FILE_KINDS[:3], column="kind")

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_destination_state_rank_at_id"))
        batch_op.drop_index(
            batch_op.f("ix_deliveries_commit_due_at"),
            sqlite_where=sa.text("commit_due_at IS NOT NULL"),
            postgresql_where=sa.text("commit_due_at IS NOT NULL"),
        )
        batch_op.drop_column("committed_at")
        batch_op.drop_column("commit_tries")
        batch_op.drop_column("commit_due_at")
        _check_again(batch_op, "deliverystate", DELIVERY_STATES)

    with op.batch_alter_table("commitments", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_commitments_transaction_uid_delivery_id"), type_="unique")
        batch_op.create_unique_constraint(batch_op.f("uq_commitments_transaction_uid"), ["transaction_uid"])
        batch_op.drop_column("accepted_at")

    with op.batch_alter_table("resends", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_resends_study_id"))
        batch_op.drop_index(batch_op.f("ix_resends_state_rank_at_id"))

    op.drop_table("resends")
    op.drop_table("destinations")
    with op.batch_alter_table("commitment_requests", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_commitment_requests_state_rank_at_id"))

    op.drop_table("commitment_requests")
