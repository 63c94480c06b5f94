"""Every picture, kept: sessions, images, directions, collections, tags, words of prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    create_groups()
    create_images()
    create_link("image_parents", "parent", "images")
    create_link("image_directions", "direction", "directions", sa.Column("multiplier", sa.Double, nullable=False))
    create_link("image_collections", "collection", "collections")
    create_link("image_tags", "tag", "tags")
    create_link("image_words", "word", "words")


def create_groups() -> None:
    for table in ("sessions", "collections"):
        op.create_table(
            table,
            sa.Column("number", big, nullable=False),
            sa.Column("id", sa.String(32), nullable=False),
            sa.Column("owner", sa.String(255), nullable=False),
            sa.Column("name", sa.String(200), nullable=False),
            sa.Column("created", sa.Double, nullable=False),
            sa.PrimaryKeyConstraint("number", name=f"pk_{table}"),
            sa.UniqueConstraint("id", name=f"uq_{table}_id"),
            *([sa.UniqueConstraint("owner", "name", name="uq_collections_owner_name")] if table == "collections" else []),
            sqlite_autoincrement=True,
        )
        op.create_index(f"ix_{table}_owner_number", table, ["owner", "number"])
    for table, first, length in (("directions", "model", 255), ("tags", "owner", 64), ("words", "owner", 64)):
        op.create_table(
            table,
            sa.Column("number", big, nullable=False),
            sa.Column(first, sa.String(255), nullable=False),
            sa.Column("name", sa.String(length), nullable=False),
            sa.PrimaryKeyConstraint("number", name=f"pk_{table}"),
            sa.UniqueConstraint(first, "name", name=f"uq_{table}_{first}_name"),
        )


def create_images() -> None:
    op.create_table(
        "images",
        sa.Column("number", big, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("session", big),
        sa.Column("task_id", sa.String(32)),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("label", sa.String(255)),
        sa.Column("prompt", sa.Text),
        sa.Column("seed", sa.BigInteger),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("blob_id", sa.String(32), nullable=False),
        sa.Column("thumbnail_id", sa.String(32)),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_images"),
        sa.UniqueConstraint("id", name="uq_images_id"),
        sa.ForeignKeyConstraint(["session"], ["sessions.number"], name="fk_images_session", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name="fk_images_blob_id"),
        sa.ForeignKeyConstraint(["thumbnail_id"], ["blobs.id"], name="fk_images_thumbnail_id"),
        sqlite_autoincrement=True,
    )
    keys = ("owner number", "owner model number", "owner label number", "owner created number", "session number", "blob_id", "thumbnail_id")
    for columns in keys:
        op.create_index("_".join(["ix_images", *columns.split()]), "images", columns.split())


def create_link(table: str, first: str, other: str, *columns: sa.Column[float]) -> None:
    op.create_table(
        table,
        sa.Column(first, big, nullable=False),
        sa.Column("image", big, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint(first, "image", name=f"pk_{table}"),
        sa.ForeignKeyConstraint([first], [f"{other}.number"], name=f"fk_{table}_{first}", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["image"], ["images.number"], name=f"fk_{table}_image", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index(f"ix_{table}_image", table, ["image"])


def downgrade() -> None:
    for table in ("image_words", "image_tags", "image_collections", "image_directions", "image_parents"):
        op.drop_table(table)
    for table in ("images", "words", "tags", "directions", "collections", "sessions"):
        op.drop_table(table)
