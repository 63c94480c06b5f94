"""The ledger against a model of it that is obviously right, with a clock that the test turns."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.conf import BlockConf, ConcurrencyConf, LimitConf, RateConf
from api.limits.base import State
from api.limits.ledger import Ledger

HOLDERS = ["one", "two", "three"]
CLIENTS = ["a", "b", "c", "d"]
Key = tuple[str, int]


class TurnedLedger(Ledger):
    """A ledger whose time stands still until a test turns it."""

    time = 1_000_000_000_000_000_000

    def now(self) -> int:
        return self.time


class LedgerMachine(RuleBasedStateMachine):
    """Three processes' ledgers on one file; the model keeps plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.dead: set[str] = set()
        self.client: dict[Key, str] = {}
        self.working: list[Key] = []
        self.queue: list[Key] = []
        self.blocked: list[Key] = []
        self.hits: dict[Key, int] = {}
        self.tokens = 0
        self.time = TurnedLedger.time

    @initialize(rate=st.booleans(), block=st.booleans(), queue=st.booleans(), most=st.integers(1, 3), line=st.integers(0, 3))
    def open(self, rate: bool, block: bool, queue: bool, most: int, line: int) -> None:
        self.conf = LimitConf(
            rate=RateConf(enabled=rate, window=10.0, max_request=4),
            block=BlockConf(enabled=block),
            concurrency=ConcurrencyConf(enabled=queue, max_concurrency=most, max_queue=line),
        )
        path = Path(self.folder.name) / "state"
        self.ledgers = {name: TurnedLedger(path, name, self.conf, lambda name: name not in self.dead) for name in HOLDERS}

    def teardown(self) -> None:
        for ledger in getattr(self, "ledgers", {}).values():
            ledger.db.close()
        self.folder.cleanup()

    # The model

    def join(self) -> State:
        if not self.conf.concurrency.enabled or (len(self.working) < self.conf.concurrency.max_concurrency and not self.queue):
            return State.WORKING
        return State.QUEUED if len(self.queue) < self.conf.concurrency.max_queue else State.OVER_QUEUE

    def put(self, key: Key, state: State) -> None:
        {State.WORKING: self.working, State.QUEUED: self.queue, State.BLOCKED: self.blocked}[state].append(key)

    def drop(self, gone: list[Key]) -> None:
        for line in (self.working, self.queue, self.blocked):
            line[:] = [key for key in line if key not in gone]
        while self.queue and len(self.working) < self.conf.concurrency.max_concurrency:
            self.working.append(self.queue.pop(0))
        for key in list(self.blocked):
            inside = {self.client[other] for other in self.working + self.queue}
            if self.client[key] not in inside and (state := self.join()) is not State.OVER_QUEUE:
                self.blocked.remove(key)
                self.put(key, state)

    def used(self, client: str) -> int:
        return sum(self.client[key] == client for key in self.hits)

    # What happens

    @rule(seconds=st.one_of(st.floats(0, 12), st.just(10.0)))
    def wait(self, seconds: float) -> None:
        self.time += int(seconds * 1e9)
        self.hits = {key: at for key, at in self.hits.items() if self.time - at < 10_000_000_000}
        for ledger in self.ledgers.values():
            ledger.time = self.time

    @rule(holder=st.sampled_from(HOLDERS), client=st.sampled_from(CLIENTS))
    def enter(self, holder: str, client: str) -> None:
        self.tokens += 1
        key = (holder, self.tokens)
        used = self.used(client)
        if self.conf.rate.enabled and used >= self.conf.rate.max_request:
            expected = State.OVER_RATE
        elif self.conf.block.enabled and client in [self.client[other] for other in self.working + self.queue + self.blocked]:
            expected = State.BLOCKED
        else:
            expected = self.join()
        place = self.ledgers[holder].enter(self.tokens, client)
        assert place.state is expected
        if expected is State.OVER_RATE:
            first = min(at for other, at in self.hits.items() if self.client[other] == client)
            assert place.reset == (first + 10_000_000_000 - self.time) / 1e9
        if expected in (State.OVER_RATE, State.OVER_QUEUE):
            return
        self.client[key] = client
        if self.conf.rate.enabled:
            # No two of a client have the same time, so that it can name them.
            self.hits[key] = max([self.time, *(at + 1 for other, at in self.hits.items() if self.client[other] == client)])
            assert place.used == used + 1
        if self.conf.block.enabled or self.conf.concurrency.enabled:
            self.put(key, expected)

    @precondition(lambda self: self.client)
    @rule(data=st.data(), refund=st.booleans())
    def leave(self, data: st.DataObject, refund: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.client)))
        known = key in self.working + self.queue + self.blocked
        forgotten = self.ledgers[key[0]].hits.get(key[1]) is None
        self.ledgers[key[0]].leave(key[1], refund)
        if refund and not forgotten:
            self.hits.pop(key, None)
        if known:
            self.drop([key])

    @rule(holder=st.sampled_from(HOLDERS[1:]))
    def die(self, holder: str) -> None:
        self.dead = {holder}
        self.ledgers["one"].reaped = float("-inf")
        self.ledgers["one"].look()
        self.dead = set()  # another process takes the name
        self.drop([key for key in self.working + self.queue + self.blocked if key[0] == holder])

    @invariant()
    def agrees(self) -> None:
        for name, ledger in getattr(self, "ledgers", {}).items():
            ledger.reaped = float("inf")
            expected = {key[1]: State.WORKING for key in self.working if key[0] == name}
            expected |= {key[1]: State.QUEUED for key in self.queue if key[0] == name}
            expected |= {key[1]: State.BLOCKED for key in self.blocked if key[0] == name}
            assert ledger.look() == expected


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=False, print_blob=True)


def test_the_window_is_exact_to_the_nanosecond(tmp_path: Path) -> None:
    conf = LimitConf(rate=RateConf(enabled=True, window=10.0, max_request=1))
    ledger = TurnedLedger(tmp_path / "state", "one", conf, lambda name: True)
    assert ledger.enter(1, "a").state is State.WORKING
    ledger.time += 10_000_000_000 - 1
    refused = ledger.enter(2, "a")
    assert (refused.state, refused.reset) == (State.OVER_RATE, 1e-9)
    ledger.time += 1
    assert ledger.enter(3, "a").state is State.WORKING
    ledger.close()


def test_what_left_the_window_leaves_the_file(tmp_path: Path) -> None:
    """Also of clients that never come again."""
    conf = LimitConf(rate=RateConf(enabled=True, window=10.0, max_request=5))
    ledger = TurnedLedger(tmp_path / "state", "one", conf, lambda name: True)
    for i in range(60):
        ledger.enter(i, f"client {i // 3}")
    ledger.time += 10_000_000_010
    for i in range(60, 81):
        ledger.enter(i, "another")
    assert ledger.db.execute("SELECT DISTINCT client FROM hit UNION SELECT client FROM quota").fetchall() == [("another",)]
    ledger.close()


def test_a_larger_quota_than_is_needed_costs_no_more(tmp_path: Path) -> None:
    """The quota is a number that is kept, not counted anew: 50,000 requests of a client in the window slow nobody down."""
    conf = LimitConf(rate=RateConf(enabled=True, max_request=1_000_000))
    ledger = TurnedLedger(tmp_path / "state", "one", conf, lambda name: True)
    start = ledger.now() - 1_000_000_000
    with ledger.transaction():
        ledger.db.executemany("INSERT INTO hit VALUES ('a', ?)", [(start + i,) for i in range(50_000)])
        ledger.db.execute("INSERT INTO quota VALUES ('a', 50000, ?)", (start + 50_000,))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    ledger.db.set_progress_handler(step, 100)
    assert ledger.enter(1, "a").used == 50_001
    assert steps < 20  # hundreds of SQLite's instructions
    ledger.db.set_progress_handler(None, 0)
    ledger.close()
