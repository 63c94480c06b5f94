"""The tables. A change here needs a migration beside the others; a test compares the two.

Times are Unix seconds by the database's own clock, so that workers on several hosts agree when a lease is over.
JSON is the plain text type on PostgreSQL too: it keeps ``\\u0000`` and lone surrogates, which prompts may contain.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Json = sa.JSON(none_as_null=True)
Row = sa.Row[*tuple[Any, ...]]

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Now(FunctionElement[float]):
    """The time of the database in Unix seconds."""

    type = sa.Double()
    inherit_cache = True


@compiles(Now, "sqlite")
def compile_sqlite(element: Now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def compile_postgresql(element: Now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


about = sa.Table(
    "about",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("folded", sa.String(256), nullable=False, unique=True),
    sa.Column("password", sa.String(255), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("params", Json, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.String(255)),
    sa.Column("lease_until", sa.Double),
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("events", sa.Integer, nullable=False, default=0),
    sa.Column("reason", sa.Text),
    sa.Column("result", Json),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    sa.Column("expires", sa.Double),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index(None, "state", "turn", "number"),
    sa.Index(None, "state", "lease_until"),
    sa.Index(None, "owner", "state", "turn"),
    sa.Index(None, "owner", "number"),
    sa.Index(None, "kind", "state", "ended"),
    sa.Index(None, "expires"),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.UniqueConstraint("task_id", "number"),
    sa.Index(None, "owner", "id"),
    sqlite_autoincrement=True,
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Index(None, "expires"),
    sa.Index(None, "owner", "created"),
)

task_blobs = sa.Table(
    "task_blobs",
    metadata,
    sa.Column("task", sa.ForeignKey("tasks.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("blob_id", sa.ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Index(None, "blob_id"),
    sqlite_with_rowid=False,
)
"""The pictures that a task is made from."""

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Index(None, "owner", "number"),
    sa.Index(None, "owner", "name"),
    sqlite_autoincrement=True,
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("session", sa.ForeignKey("sessions.number", ondelete="SET NULL")),
    sa.Column("task_id", sa.String(32)),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("label", sa.String(255)),
    sa.Column("prompt", sa.Text),
    sa.Column("seed", sa.BigInteger),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("recipe", Json, nullable=False),
    sa.Column("blob_id", sa.ForeignKey("blobs.id"), nullable=False),
    sa.Column("thumbnail_id", sa.ForeignKey("blobs.id")),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("starred", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("note", sa.Text),
    sa.Column("deleted", sa.Double),
    sa.Column("links", Json),
    sa.Column("job", Json),
    sa.Index(None, "owner", "number"),
    sa.Index(None, "owner", "model", "number"),
    sa.Index(None, "owner", "label", "number"),
    sa.Index(None, "owner", "starred", "number"),
    sa.Index(None, "deleted"),
    sa.Index(None, "owner", "created", "number"),
    sa.Index(None, "session", "number"),
    sa.Index(None, "blob_id"),
    sa.Index(None, "thumbnail_id"),
    sqlite_autoincrement=True,
)


def link(name: str, first: str, *columns: sa.Column[float]) -> sa.Table:
    """Rows of another table that belong to pictures; its key finds them in the order of pictures."""
    return sa.Table(
        name,
        metadata,
        sa.Column(first, sa.ForeignKey(f"{first}s.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("image", sa.ForeignKey("images.number", ondelete="CASCADE"), primary_key=True),
        *columns,
        sa.Index(None, "image"),
        sqlite_with_rowid=False,
    )


image_parents = sa.Table(
    "image_parents",
    metadata,
    sa.Column("parent", sa.ForeignKey("images.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("image", sa.ForeignKey("images.number", ondelete="CASCADE"), primary_key=True),
    sa.Index(None, "image"),
    sqlite_with_rowid=False,
)

image_inputs = sa.Table(
    "image_inputs",
    metadata,
    sa.Column("image", sa.ForeignKey("images.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("blob_id", sa.ForeignKey("blobs.id"), nullable=False),
    sa.Index(None, "blob_id"),
    sqlite_with_rowid=False,
)
"""The pictures that a picture was made from, as its job names them: "image", "mask"."""

directions = sa.Table(
    "directions",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.UniqueConstraint("model", "name"),
)
image_directions = link("image_directions", "direction", sa.Column("multiplier", sa.Double, nullable=False))

collections = sa.Table(
    "collections",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.UniqueConstraint("owner", "name"),
    sa.Index(None, "owner", "number"),
    sqlite_autoincrement=True,
)
image_collections = link("image_collections", "collection")

tags = sa.Table(
    "tags",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.UniqueConstraint("owner", "name"),
)
image_tags = link("image_tags", "tag")

words = sa.Table(
    "words",
    metadata,
    sa.Column("number", Id, primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.UniqueConstraint("owner", "name"),
)
"""Words of prompts: an index of our own, as the two databases' full-text searches differ in what a word is and in their order."""
image_words = link("image_words", "word")
