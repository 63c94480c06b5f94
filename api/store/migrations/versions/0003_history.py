"""Stars, notes, deletions that can be undone, and all that makes a picture again."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("starred", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("note", sa.Text),
        sa.Column("deleted", sa.Double),
        sa.Column("links", sa.JSON),
        sa.Column("job", sa.JSON),
    ]


def upgrade() -> None:
    for column in columns():
        op.add_column("images", column)
    op.create_index("ix_images_owner_starred_number", "images", ["owner", "starred", "number"])
    op.create_index("ix_images_deleted", "images", ["deleted"])
    op.create_index("ix_sessions_owner_name", "sessions", ["owner", "name"])
    op.create_table(
        "image_inputs",
        sa.Column("image", big, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("blob_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("image", "name", name="pk_image_inputs"),
        sa.ForeignKeyConstraint(["image"], ["images.number"], name="fk_image_inputs_image", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name="fk_image_inputs_blob_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_image_inputs_blob_id", "image_inputs", ["blob_id"])


def downgrade() -> None:
    op.drop_table("image_inputs")
    op.drop_index("ix_sessions_owner_name", "sessions")
    op.drop_index("ix_images_deleted", "images")
    op.drop_index("ix_images_owner_starred_number", "images")
    for column in columns():
        op.drop_column("images", column.name)
