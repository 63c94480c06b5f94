"""The state of all limits in one SQLite file: who is counted, who works, who waits. Plain and synchronous; one transaction a call.

Places are given by whoever frees one, in the same transaction, so that none lies idle and none is overtaken.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from api.conf import LimitConf
from api.limits.base import Place, State
from api.limits.clock import anchor, boot_id, boot_time

BUSY_TIMEOUT = 5.0  # seconds; a transaction takes a fraction of a millisecond
REAP_PERIOD = 0.25  # seconds between looks for the dead

SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (boot TEXT NOT NULL, anchor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS hit (client TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (client, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quota (client TEXT PRIMARY KEY, used INTEGER NOT NULL, latest INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS quota_latest ON quota (latest);
CREATE TABLE IF NOT EXISTS ticket (
    holder TEXT NOT NULL, token INTEGER NOT NULL, client TEXT NOT NULL, state INTEGER NOT NULL, turn INTEGER NOT NULL,
    PRIMARY KEY (holder, token)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ticket_line ON ticket (state, turn);
CREATE INDEX IF NOT EXISTS ticket_client ON ticket (client, state, turn);
"""

COUNTS = "SELECT (SELECT count(*) FROM ticket WHERE state = ?), (SELECT count(*) FROM ticket WHERE state = ?)"
NEXT = "SELECT holder, token FROM ticket WHERE state = ? ORDER BY turn LIMIT max(0, ? - (SELECT count(*) FROM ticket WHERE state = ?))"
TURN = "(SELECT 1 + ifnull(max(turn), 0) FROM ticket WHERE state = ?)"
"""A number after all of those that wait likewise."""

STATES = tuple(State)
Move = tuple[str, int, State]


class Ledger:
    """One process's connection. ``holder`` names the process, ``lives`` tells whether another holder does."""

    def __init__(self, path: Path, holder: str, conf: LimitConf, lives: Callable[[str], bool]) -> None:
        self.holder, self.conf, self.lives = holder, conf, lives
        self.window = int(conf.rate.window * 1e9)
        self.hits: dict[int, tuple[str, int]] = {}  # what each own request was counted as
        self.moves: list[Move] = []  # what the last transactions gave to whom
        self.reaped = 0.0
        self.path, self.patience = path, BUSY_TIMEOUT
        self.db = sqlite3.connect(path, timeout=self.patience, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        self.db.executescript(SCHEMA)
        self.anchor = self.find_anchor()

    def close(self) -> None:
        """Frees all places of this process."""
        with self.transaction():
            self.advance(self.remove(self.holder))
        self.db.close()

    def set_patience(self, seconds: float) -> None:
        """How long a transaction waits while another process is in one; then it raises an error for which ``is_taken`` holds."""
        if seconds != self.patience:
            self.db.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")
            self.patience = seconds

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        kept = len(self.moves)
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            del self.moves[kept:]
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def number(self, sql: str, *values: object) -> int:
        row = self.db.execute(sql, values).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    # The clock

    def find_anchor(self) -> int:
        boot = boot_id()
        with self.transaction():
            row = self.db.execute("SELECT boot, anchor FROM clock").fetchone()
            latest = self.number("SELECT max(latest) FROM quota")
            if row and row[0] == boot and row[1] + boot_time() >= latest:
                return int(row[1])
            found = anchor(latest)
            self.db.execute("DELETE FROM clock")
            self.db.execute("INSERT INTO clock VALUES (?, ?)", (boot, found))
            return found

    def now(self) -> int:
        return self.anchor + boot_time()

    # What the store does

    def enter(self, token: int, client: str) -> Place:
        with self.transaction():
            now = self.now()
            used = self.count_hits(client, now) if self.conf.rate.enabled else 0
            if self.conf.rate.enabled and used >= self.conf.rate.max_request:
                return Place(State.OVER_RATE, used, self.until_reset(client, now, used - self.conf.rate.max_request), *self.counts())
            counts = self.counts()
            state = self.choose(client, *counts)
            if state is not State.WORKING and self.due():
                self.reap()
                counts = self.counts()
                state = self.choose(client, *counts)
            if state is State.OVER_QUEUE:
                return Place(state, used, self.until_reset(client, now), *counts)
            if self.conf.rate.enabled:
                self.hits[token] = (client, self.hit(client, now))
            if self.conf.block.enabled or self.conf.concurrency.enabled:
                self.db.execute(f"INSERT INTO ticket VALUES (?, ?, ?, ?, {TURN})", (self.holder, token, client, state, state))
            working, queued = counts
            if self.conf.concurrency.enabled:
                working, queued = working + (state is State.WORKING), queued + (state is State.QUEUED)
            return Place(state, used + self.conf.rate.enabled, self.until_reset(client, now), working, queued)

    def leave(self, token: int, refund: bool) -> None:
        with self.transaction():
            if refund and token in self.hits:
                self.unhit(*self.hits[token])
            self.advance(self.remove(self.holder, token))
        self.hits.pop(token, None)

    def look(self) -> dict[int, State]:
        if self.due():
            with self.transaction():
                self.reap()
        rows = self.db.execute("SELECT token, state FROM ticket WHERE holder = ?", (self.holder,))
        return {token: STATES[state] for token, state in rows}

    # Rate

    def count_hits(self, client: str, now: int) -> int:
        """The client's requests in the window; drops those that left it, and one client's that has not come for as long."""
        expired = now - self.window
        stale = self.db.execute("SELECT client FROM quota WHERE latest <= ? LIMIT 1", (expired,)).fetchone()
        for name in {client, *(stale or ())}:
            gone = self.db.execute("DELETE FROM hit WHERE client = ? AND at <= ?", (name, expired)).rowcount
            if gone:
                self.db.execute("UPDATE quota SET used = used - ? WHERE client = ?", (gone, name))
        self.db.execute("DELETE FROM quota WHERE client = ? AND used <= 0", stale or (client,))
        return self.number("SELECT used FROM quota WHERE client = ?", client)

    def hit(self, client: str, now: int) -> int:
        """Counts a request. Its time is its name, so no two of a client have the same."""
        at = max(now, 1 + self.number("SELECT max(at) FROM hit WHERE client = ?", client))
        self.db.execute("INSERT INTO hit VALUES (?, ?)", (client, at))
        self.db.execute(
            "INSERT INTO quota VALUES (?, 1, ?) ON CONFLICT (client) DO UPDATE SET used = used + 1, latest = excluded.latest", (client, at)
        )
        return at

    def unhit(self, client: str, at: int) -> None:
        gone = self.db.execute("DELETE FROM hit WHERE client = ? AND at = ?", (client, at)).rowcount
        self.db.execute("UPDATE quota SET used = used - ? WHERE client = ?", (gone, client))

    def until_reset(self, client: str, now: int, skip: int = 0) -> float:
        """Seconds until the oldest request but ``skip`` leaves the window."""
        if not self.conf.rate.enabled:
            return 0.0
        at = self.number("SELECT at FROM hit WHERE client = ? ORDER BY at LIMIT 1 OFFSET ?", client, skip)
        return max(0, at + self.window - now) / 1e9 if at else 0.0

    # Block and queue

    def counts(self) -> tuple[int, int]:
        """How many work and wait."""
        if not self.conf.concurrency.enabled:
            return 0, 0
        working, queued = self.db.execute(COUNTS, (State.WORKING, State.QUEUED)).fetchone()
        return working, queued

    def choose(self, client: str, working: int, queued: int) -> State:
        """Where a request that arrives now has to stand, while so many work and wait."""
        if self.conf.block.enabled and self.number("SELECT EXISTS (SELECT 1 FROM ticket WHERE client = ?)", client):
            return State.BLOCKED
        return self.join(working, queued)

    def join(self, working: int, queued: int) -> State:
        """Where a request stands that its client no longer blocks."""
        limit = self.conf.concurrency
        if not limit.enabled or (working < limit.max_concurrency and not queued):
            return State.WORKING
        return State.QUEUED if queued < limit.max_queue else State.OVER_QUEUE

    def move(self, holder: str, token: int, state: State) -> None:
        self.db.execute(f"UPDATE ticket SET state = ?, turn = {TURN} WHERE holder = ? AND token = ?", (state, state, holder, token))
        self.moves.append((holder, token, state))

    def remove(self, holder: str, token: int | None = None) -> set[str]:
        """Takes a request, or all of a holder, out of its place; the clients of what was there."""
        one = "" if token is None else " AND token = ?"
        values = (holder,) if token is None else (holder, token)
        if not self.conf.block.enabled:  # nobody waits for a client
            self.db.execute(f"DELETE FROM ticket WHERE holder = ?{one}", values)
            return set()
        return {row[0] for row in self.db.execute(f"DELETE FROM ticket WHERE holder = ?{one} RETURNING client", values).fetchall()}

    def advance(self, clients: Iterable[str]) -> None:
        """Gives free places to the queue, then lets in each client's next, in the order in which they came."""
        limit = self.conf.concurrency
        if limit.enabled:
            for holder, token in self.db.execute(NEXT, (State.QUEUED, limit.max_concurrency, State.WORKING)).fetchall():
                self.move(holder, token, State.WORKING)
        if not self.conf.block.enabled:
            return
        sql = "SELECT turn, client, holder, token FROM ticket WHERE client = ? AND state = ? ORDER BY turn LIMIT 1"
        firsts = [row for client in clients if (row := self.db.execute(sql, (client, State.BLOCKED)).fetchone())]
        for _, client, holder, token in sorted(firsts):
            self.unblock(client, holder, token)

    def unblock(self, client: str, holder: str, token: int) -> None:
        """Lets in a client's first waiting request if none of its others is in and there is room."""
        inside = self.number("SELECT EXISTS (SELECT 1 FROM ticket WHERE client = ? AND state > ?)", client, State.BLOCKED)
        if not inside and (state := self.join(*self.counts())) is not State.OVER_QUEUE:
            self.move(holder, token, state)

    def due(self) -> bool:
        return time.monotonic() >= self.reaped + REAP_PERIOD

    def reap(self) -> None:
        """Frees the places of the dead."""
        self.reaped = time.monotonic()
        for (holder,) in self.db.execute("SELECT DISTINCT holder FROM ticket").fetchall():
            if holder != self.holder and not self.lives(holder):
                self.remove(holder)
        # All clients: some may have stayed outside although nothing of theirs was inside, for want of room.
        self.advance(row[0] for row in self.db.execute("SELECT DISTINCT client FROM ticket WHERE state = ?", (State.BLOCKED,)).fetchall())


def is_taken(error: sqlite3.Error) -> bool:
    """Whether only the patience was too short."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY  # the rest tells why, such as that a log is being recovered


def checkpoint(path: Path) -> None:
    """Writes what the log (WAL) holds to the file, and lets it begin anew.

    It waits for the disk, and so would everybody who wrote to the log meanwhile: therefore it is a transaction, which keeps the others out.
    """
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(RESTART)")
