"""Brings a database to the newest schema, however many processes open it at once: one migrates, the others wait."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from api.errors import Busy, ConfigError
from api.store.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0004"
"""The newest revision; known here so that an open without anything to migrate does not import Alembic."""
MIGRATE_LOCK = 0x5747_0002
MIGRATIONS = Path(__file__).parent / "migrations"


async def migrate(database: Database) -> None:
    """Raises ``ConfigError`` where the database cannot be reached or was made by a newer version of this server."""
    try:
        async with lock_file(database):
            if database.sqlite:
                await use_wal(database)
            await migrate_locked(database)
    except (Busy, DBAPIError, OSError) as error:
        raise ConfigError(f"store: the database {database.url.render_as_string()} cannot be opened: {error.__cause__ or error}") from error


async def migrate_locked(database: Database) -> None:
    async with database.write() as connection:
        if not database.sqlite:
            await connection.run_sync(wait_for_turn)
        if await connection.run_sync(read_revision) != HEAD:
            await connection.run_sync(upgrade)


def wait_for_turn(connection: sa.Connection) -> None:
    """However long another process migrates."""
    connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATE_LOCK)))


@asynccontextmanager
async def lock_file(database: Database) -> AsyncIterator[None]:
    """Alone with an SQLite file: the switch to WAL fails at once, busy timeout or not, when another process is at it too."""
    if not database.sqlite:
        yield
        return
    path = Path(str(database.url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "wb") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def use_wal(database: Database) -> None:
    """Readers and the writer then do not wait for each other; the file remembers it."""
    async with database.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        cursor = await raw.driver_connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[union-attr]
        await cursor.close()


def read_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if revision is None else str(revision)


def upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.util.exc import CommandError

    try:
        command.upgrade(make_config(connection), "head")
    except CommandError as error:
        raise ConfigError(
            f"store: the database's schema is not one that this version knows ({error}); was it made by a newer one?"
        ) from None


def make_config(connection: sa.Connection) -> Config:
    """For Alembic's own commands too: ``command.revision(make_config(connection), autogenerate=True)``."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
