"""What Alembic runs around the migrations. It loads this file by its path, under a name of its own; an import does nothing."""

from __future__ import annotations

from alembic import context

from api.store.tables import metadata


def run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if not __name__.startswith("api."):
    run()
