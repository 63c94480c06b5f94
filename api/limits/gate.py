"""The gate that every computing request passes."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from api.conf import LimitConf
from api.errors import Blocked, Busy, NoAddress, RateLimited, ServerError
from api.limits.admission import Admission, headers
from api.limits.base import Place, State, Store
from api.limits.local import LocalStore

LIVENESS = 0.5  # seconds: the places of the dead are free within one, however rarely the TOML wants us to look
SMOOTHING = 0.1
PROBE = 0.1  # seconds after which it is asked again whether a full queue is still full


class Waiter:
    """A request of this process, as the store last told."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.news: asyncio.Future[bool] | None = None

    def set(self, state: State) -> None:
        # News may overtake each other; only LOST and later states count.
        if self.state is None or state > self.state:
            self.state = state
            self.tell(True)

    def tell(self, moved: bool) -> None:
        if self.news is not None and not self.news.done():
            self.news.set_result(moved)

    async def move(self, seconds: float) -> bool:
        """Whether it is told of another state within so many ``seconds``."""
        loop = asyncio.get_running_loop()
        self.news = loop.create_future()
        timer = loop.call_later(seconds, self.tell, False)
        try:
            return await self.news
        finally:
            timer.cancel()


@dataclass(slots=True)
class Full:
    """The queue was full, and is taken to be so: as many requests may ask for a place as have left one, and one now and then."""

    probe: float
    free: int = 0
    retry_after: float = 1.0
    ahead: int = 0
    """Have been let in, and are on their way to ask."""


class Limits:
    """Rate, block and queue of all worker processes together, as far as ``conf`` turns them on."""

    def __init__(self, conf: LimitConf) -> None:
        self.conf = conf
        self.enabled = conf.rate.enabled or conf.block.enabled or conf.concurrency.enabled
        self.needs_address = conf.rate.enabled or conf.block.enabled
        polls = [part.poll for part in (conf.block, conf.concurrency) if part.enabled]
        self.poll = min([LIVENESS, *polls])
        self.store: Store | None = None
        self.tokens = itertools.count(1)
        self.waiters: dict[int, Waiter] = {}
        self.waiting: set[int] = set()
        self.rung = asyncio.Event()
        self.watching: asyncio.Task[None] | None = None
        self.held = 1.0  # seconds that requests were at work lately
        self.crowd: Full | None = None

    @classmethod
    async def open(cls, conf: LimitConf, tmp_dir: Path, redis: str | None = None) -> Self:
        """Nothing is opened when nothing is on. The state is in ``tmp_dir``, or at the URL ``redis``. Raises ``ConfigError``."""
        limits = cls(conf)
        if limits.enabled and redis is not None:
            shared = await asyncio.to_thread(importlib.import_module, "api.limits.shared")
            limits.store = await shared.RedisStore.open(conf, redis, limits.wake)
        elif limits.enabled:
            limits.store = await LocalStore.open(conf, tmp_dir, limits.wake)
        return limits

    async def close(self) -> None:
        """Frees all places of this process."""
        if self.watching is not None:
            self.watching.cancel()
            await asyncio.gather(self.watching, return_exceptions=True)
        if self.store is not None:
            await self.store.close()

    def admit(
        self, client: str | None, waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> AbstractAsyncContextManager[Admission]:
        """The right to compute while the context lasts; waits for it as long as the TOML says, within the context ``waiting``.

        Raises ``NoAddress``, ``RateLimited``, ``Blocked`` or ``Busy``, which cost no quota; nor does leaving while waiting.
        """
        if self.store is None:
            with waiting():
                return nullcontext(Admission(self.conf))
        if client is None and self.needs_address:
            raise NoAddress()
        return self.hold(self.store, client or "", waiting)

    @asynccontextmanager
    async def hold(self, store: Store, client: str, waiting: Callable[[], AbstractContextManager[object]]) -> AsyncIterator[Admission]:
        token = next(self.tokens)
        self.waiters[token] = Waiter()
        refund = leave = True
        try:
            with waiting():
                place = await store.enter(token, client)
                if place.state in (State.OVER_RATE, State.OVER_QUEUE):
                    leave = False
                    refusal = self.refusal(place.state, place)
                    self.note(place, refusal)
                    raise refusal
                self.note(place)
                await self.wait(token, place)
            admission, begun = Admission(self.conf, place), time.monotonic()
            refund = False
            try:
                yield admission
            finally:
                refund = admission.refunded
                self.held += SMOOTHING * (time.monotonic() - begun - self.held)
        finally:
            del self.waiters[token]
            if leave:
                with suppress(Busy):  # logged and tried again by the store; the request itself is done
                    await store.leave(token, refund=refund)
                self.make_room()

    def full(self) -> Full | None:
        """Whether it is in vain to ask for a place."""
        crowd = self.crowd
        return crowd if crowd is not None and crowd.free <= 0 and time.monotonic() < crowd.probe else None

    def let_in(self) -> Full | None:
        """The same at the door, where many come in one turn of the event loop before any of them has asked.

        Whoever is let in is ahead of those who come next, until ``arrive``.
        """
        crowd = self.crowd
        if crowd is not None:
            # Should one of them never arrive, the next look is late, not lost.
            look = crowd.probe + (PROBE if crowd.ahead else 0.0)
            if crowd.free <= crowd.ahead and time.monotonic() < look:
                return crowd
            crowd.ahead += 1
        return None

    def arrive(self) -> None:
        """One of those who were let in now asks ``full``."""
        if self.crowd is not None and self.crowd.ahead:
            self.crowd.ahead -= 1

    def take_chance(self) -> None:
        """Notes that somebody asks for a place though the queue was full lately; ``make_room`` if nobody does after all."""
        if self.crowd is None:
            return
        if time.monotonic() < self.crowd.probe:
            self.crowd.free -= 1
        else:
            self.crowd.probe = time.monotonic() + PROBE

    def make_room(self) -> None:
        if self.crowd is not None:
            self.crowd.free += 1

    def note(self, place: Place, refusal: ServerError | None = None) -> None:
        """What a place tells of the queue. A very short one is always asked: it may be empty before this process hears of it."""
        if refusal is None:
            if place.state is State.WORKING:  # nobody waits
                self.crowd = None
            elif self.crowd is not None and place.queued >= self.conf.concurrency.max_queue:  # it took the last place there was
                self.crowd.probe = time.monotonic() + PROBE
        elif place.state is not State.OVER_QUEUE:
            self.make_room()
        elif self.conf.concurrency.max_queue > 1:
            self.crowd = Full(time.monotonic() + PROBE, 0, refusal.retry_after or 1.0)

    async def wait(self, token: int, place: Place) -> None:
        """Until the request may work. Raises ``Blocked`` or ``Busy`` when its time is over."""
        waiter = self.waiters[token]
        waiter.set(place.state)
        self.waiting.add(token)
        try:
            while (state := waiter.state) is not State.WORKING:
                if state is not State.BLOCKED and state is not State.QUEUED:
                    raise self.refusal(State.LOST, place)
                self.watch()
                conf = self.conf.block if state is State.BLOCKED else self.conf.concurrency
                if not await waiter.move(conf.timeout) and waiter.state is state:  # it may have moved in this very moment
                    raise self.refusal(state, place)
        finally:
            self.waiting.discard(token)

    def refusal(self, state: State, place: Place) -> ServerError:
        """Why a request is sent away, and when to come again: exact for the rate, for the rest judged from what requests took lately."""
        fields = headers(self.conf, place, refunded=place.state in (State.BLOCKED, State.QUEUED))
        if state is State.OVER_RATE:
            return RateLimited(retry_after=place.reset, headers=fields)
        if state is State.BLOCKED:
            return Blocked(retry_after=max(1.0, self.held), headers=fields)
        turns = (place.queued + 1) / self.conf.concurrency.max_concurrency
        return Busy(retry_after=max(1.0, self.held * turns), headers=fields)

    def wake(self, moves: Mapping[int, State]) -> None:
        """The store's news; none means that it is worth a look."""
        for token, state in moves.items():
            if token in self.waiters:
                self.waiters[token].set(state)
        if not moves:
            self.rung.set()

    def watch(self) -> None:
        if self.watching is None or self.watching.done():
            self.watching = asyncio.create_task(self.keep_watch())

    async def keep_watch(self) -> None:
        """Asks the store for all who wait here, as long as anybody does."""
        assert self.store is not None
        while self.waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll):
                    await self.rung.wait()
            self.rung.clear()
            asked = set(self.waiting)
            with suppress(Busy):
                found = await self.store.look()
                self.wake({token: found.get(token, State.LOST) for token in asked})
