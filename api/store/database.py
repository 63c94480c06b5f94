"""One database, SQLite or PostgreSQL, behind the same two verbs: read and write."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from api.errors import Busy, ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]

WRITES = "store_writes"
PATIENCE, GREETING = 15.0, 3.0
"""Seconds that a PostgreSQL server, or the network to it, may keep silent: in the middle of a transaction, and at its beginning."""
UNFIT = ("08", "25006", "25P03", "53", "55P03", "57P", "58")
"""How the SQLSTATEs begin of a server that cannot work now: connection lost, only a standby, our silence or a lock took too long, no room,
going or coming, its disk fails."""
SESSION = {
    # What a host that vanished had begun must not keep the others' locks: nobody tells the server that it has gone.
    "idle_in_transaction_session_timeout": 5000,
    "lock_timeout": 10_000,
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}
ORDER_LOCK = 0x5747_0001
"""Key of the PostgreSQL advisory lock that puts commits of events into the order of their ids."""

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}


class Database:
    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.sqlite = url.get_backend_name() == "sqlite"
        self.engine = create_engine(url)
        self.writer = self.engine.execution_options(**{WRITES: True})
        self.reader = self.engine if self.sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        # Writers of one process queue here in the order they came; SQLite's own waiting is by sleeping and unfair.
        self.turn = asyncio.Lock() if self.sqlite else None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Every statement sees what is committed when it begins; cheap, as nothing is begun or ended around it. Raises ``Busy``."""
        with tell_busy():
            async with transaction(self.reader) as opened:
                yield opened

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """A transaction that is committed when the block ends and rolled back when it raises. Raises ``Busy``."""
        with tell_busy():
            async with self.turn or nullcontext(), transaction(self.writer) as opened:
                yield opened
                await opened.heard(opened.connection.commit())

    async def order(self, connection: Transaction) -> None:
        """From here to the commit this writer is alone among those who call it.

        Ids that a sequence gave out are committed in any order, so that a reader who asks for "ids after the last I saw" could miss one.
        Rows must be locked before this, never after it: else two writers can wait for each other. SQLite has one writer anyway.
        """
        if not self.sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ORDER_LOCK)))

    async def close(self) -> None:
        await self.engine.dispose()


class Transaction:
    """The statements of one transaction. A caller who is cancelled leaves between two of them, never within one.

    A statement that is abandoned half way leaves a connection of which nobody knows what it is doing, and which may hold SQLite's write
    lock until it is collected.
    """

    def __init__(self, connection: AsyncConnection, driver: Any) -> None:
        self.connection, self.driver = connection, driver

    async def heard(self, work: Awaitable[T]) -> T:
        """The result of ``work``, to its end. A server that vanished ends no connection: then we do, and the work fails as if it had."""
        with hang_up_after(PATIENCE, self.driver):
            return await whole(work)

    async def execute(
        self, statement: sa.Executable, values: Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        return await self.heard(self.connection.execute(statement, values))

    async def scalar(self, statement: sa.Executable) -> Any:
        return await self.heard(self.connection.scalar(statement))

    async def scalars(self, statement: sa.Executable) -> Sequence[Any]:
        return (await self.heard(self.connection.scalars(statement))).all()

    async def run_sync(self, function: Callable[[sa.Connection], T]) -> T:
        """For migrations, which take as long as they take."""
        return await whole(self.connection.run_sync(function))


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[Transaction]:
    """Begins with the first statement; whatever is not committed at the end is rolled back."""
    connection, driver = engine.connect(), None
    try:
        await whole(connection.start())
        driver = (await connection.get_raw_connection()).driver_connection
        yield Transaction(connection, driver)
    finally:
        if connection.sync_connection is not None:
            with hang_up_after(PATIENCE, driver):
                await whole(connection.close())


@contextmanager
def hang_up_after(seconds: float, driver: Any) -> Iterator[None]:
    """Ends a connection to PostgreSQL unless the block ends within so many seconds; a file needs no such thing."""
    terminate = getattr(driver, "terminate", None)
    timer = asyncio.get_running_loop().call_later(seconds, terminate) if terminate else None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


async def whole(work: Awaitable[T]) -> T:
    """Waits for ``work`` to its end, also when the caller is cancelled meanwhile; only then the cancel goes on."""
    task = asyncio.ensure_future(work)
    cancel: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        task.exception()  # asked for, so that it is not reported as never looked at
        raise cancel
    return task.result()


def parse_url(url: str | None, data_dir: Path) -> sa.URL:
    """The database's URL with an asynchronous driver; without one, a file in ``data_dir``. Raises ``ConfigError``."""
    if url is None:
        return sa.URL.create(DRIVERS["sqlite"], database=str(data_dir / "store.sqlite"))
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise ConfigError("store.url: not a URL; use for example postgresql://user:password@host/name") from None
    parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"store.url: found {parsed.drivername}://; use sqlite:// or postgresql://")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("store.url: found a database in memory, which workers cannot share; name a file")
    return parsed


def create_engine(url: sa.URL) -> AsyncEngine:
    dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))
    if url.get_backend_name() != "sqlite":
        known = url.drivername == "postgresql+asyncpg"
        sizes = {"pool_size": 8, "max_overflow": 8, "pool_timeout": PATIENCE, "pool_pre_ping": not known, "connect_args": patience(url)}
        engine = create_async_engine(url, json_serializer=dumps, hide_parameters=True, **sizes)
        if known:
            sa.event.listen(engine.sync_engine, "connect", prepare_postgresql)
            sa.event.listen(engine.sync_engine, "checkout", greet)
        return engine
    arguments = {"timeout": 30}  # seconds that a writer waits for those of other processes
    engine = create_async_engine(url, json_serializer=dumps, hide_parameters=True, pool_size=4, max_overflow=4, connect_args=arguments)
    sa.event.listen(engine.sync_engine, "connect", prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", begin_sqlite)
    return engine


def patience(url: sa.URL) -> dict[str, Any]:
    """What asyncpg is to be told; others may not know it."""
    return {"timeout": GREETING} if url.drivername == "postgresql+asyncpg" else {}


def prepare_postgresql(connection: Any, record: Any) -> None:
    with hang_up_after(GREETING, connection.driver_connection):
        cursor = connection.cursor()
        cursor.execute("SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in SESSION.items()))
        cursor.close()
        connection.commit()
    record.info["fresh"] = True


def greet(connection: Any, record: Any, proxy: object) -> None:
    """Asks a pooled connection whether it is still there, as the library's own "pre-ping" does; but not for ever."""
    if record.info.pop("fresh", False):
        return
    try:
        with hang_up_after(GREETING, connection.driver_connection):
            connection.ping()
    except Exception as error:
        raise InvalidatePoolError() from error


def prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not where the driver guesses
    cursor = connection.cursor()
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "temp_store = MEMORY", "cache_size = -8192"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin_sqlite(connection: sa.Connection) -> None:
    """Writers take the lock at once: one that began by reading and then wants to write fails when another wrote in between."""
    if connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def tell_busy() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout, OSError) as error:
        log.error("the database cannot be used: %s", error)
        raise Busy("the database is unavailable") from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if not error.connection_invalidated and not state.startswith(UNFIT):
            raise
        log.error("the database cannot be used: %s", error)
        raise Busy("the database is unavailable") from error
