"""What a task is made from stays until it has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "task_blobs",
        sa.Column("task", big, nullable=False),
        sa.Column("blob_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("task", "blob_id", name="pk_task_blobs"),
        sa.ForeignKeyConstraint(["task"], ["tasks.number"], name="fk_task_blobs_task", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name="fk_task_blobs_blob_id", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_task_blobs_blob_id", "task_blobs", ["blob_id"])


def downgrade() -> None:
    op.drop_table("task_blobs")
