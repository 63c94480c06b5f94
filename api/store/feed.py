"""One look at the database for all who follow events in this process, instead of one for each of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, Self, TypeVar

from api.store.bell import Bell

log = logging.getLogger(__name__)

Key = tuple[str, str]
PAGE = 500
BACKLOG = 512
"""Events kept for a reader who is slow; then it reads them from the database again."""


class Numbered(Protocol):
    @property
    def id(self) -> int: ...


Item = TypeVar("Item", bound=Numbered)


class Feed(Generic[Item]):
    """Looks for new items while somebody follows: when the bell rings, and from time to time.

    ``read(after, limit)`` gives items with an id greater than ``after``; ``newest()`` the greatest id;
    ``keys(item)`` whom an item concerns.
    """

    def __init__(
        self,
        bell: Bell,
        read: Callable[[int, int], Awaitable[list[Item]]],
        newest: Callable[[], Awaitable[int]],
        keys: Callable[[Item], Iterable[Key]],
    ) -> None:
        self.bell, self.read, self.newest, self.keys = bell, read, newest, keys
        self.streams: dict[Key, set[Stream[Item]]] = {}
        self.position = 0
        self.starting = asyncio.Lock()
        self.running: asyncio.Task[None] | None = None

    async def join(self, stream: Stream[Item]) -> None:
        """From its return on, the stream is given every item that is committed."""
        async with self.starting:
            if self.running is None:
                self.position = await self.newest()
                self.running = asyncio.create_task(self.run(), name="feed")
            self.streams.setdefault(stream.key, set()).add(stream)

    async def leave(self, stream: Stream[Item]) -> None:
        followers = self.streams.get(stream.key, set())
        followers.discard(stream)
        if not followers:
            self.streams.pop(stream.key, None)
        if not self.streams:
            await self.stop()

    async def stop(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    async def run(self) -> None:
        while True:
            count = self.bell.count("events")
            try:
                items = await self.read(self.position, PAGE)
            except Exception:  # whatever it was: those who follow would else wait for ever
                log.exception("the new events could not be read; trying again")
                await asyncio.sleep(1.0)
                continue
            for item in items:
                self.give(item)
            if len(items) < PAGE:
                await self.bell.wait("events", count, self.bell.poll)

    def give(self, item: Item) -> None:
        self.position = item.id
        for key in self.keys(item):
            for stream in self.streams.get(key, ()):
                stream.put(item)


class Stream(Generic[Item]):
    """A follower: ``async with stream: async for item in stream``, or ``take`` where silence must be noticed.

    ``position(item)`` is what ``since`` counts; ``load(since)`` reads stored items from there; the stream ends after an ``ends(item)``.
    """

    def __init__(
        self,
        feed: Feed[Item],
        key: Key,
        load: Callable[[int], Awaitable[list[Item]]],
        position: Callable[[Item], int],
        since: int | None,
        ends: Callable[[Item], bool] = lambda item: False,
    ) -> None:
        self.feed, self.key, self.load, self.position, self.ends = feed, key, load, position, ends
        self.since = since
        self.stale = since is not None  # what is stored has to be read first
        self.over = False
        self.queue: deque[Item] = deque()
        self.wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.feed.join(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.feed.leave(self)

    def end(self) -> None:
        """Nothing more is taken from it."""
        self.over = True
        self.wake.set()

    def put(self, item: Item) -> None:
        if len(self.queue) >= BACKLOG:
            self.since = self.position(self.queue[0]) - 1 if self.since is None else self.since
            self.queue.clear()
            self.stale = True
        if not self.stale:
            self.queue.append(item)
        self.wake.set()

    async def take(self, timeout: float | None = None) -> list[Item]:
        """What is new, at least one item; an empty list when nothing came within ``timeout`` seconds or the stream is over."""
        try:
            async with asyncio.timeout(timeout):
                while not self.over:
                    if items := self.accept(await self.fetch()):
                        return items
                    if not self.over and not self.stale and not self.queue:
                        await self.wake.wait()
        except TimeoutError:
            pass
        return []

    async def fetch(self) -> list[Item]:
        self.wake.clear()
        if self.stale:
            return await self.catch_up()
        items = list(self.queue)
        self.queue.clear()
        return items

    async def catch_up(self) -> list[Item]:
        self.queue.clear()
        self.stale = False  # items that come during the look are queued; those seen twice are dropped
        try:
            items = await self.load(self.since or 0)
        except BaseException:
            self.stale = True
            raise
        self.stale = self.stale or len(items) >= PAGE
        return items

    def accept(self, items: list[Item]) -> list[Item]:
        fresh = []
        for item in items:
            self.over = self.over or self.ends(item)
            if self.since is None or self.position(item) > self.since:
                self.since = self.position(item)
                fresh.append(item)
        return fresh

    def __aiter__(self) -> Self:
        self.arrived: deque[Item] = deque()
        return self

    async def __anext__(self) -> Item:
        while not self.arrived:
            if self.over:
                raise StopAsyncIteration
            self.arrived.extend(await self.take())
        return self.arrived.popleft()
