"""The limits of several hosts: their state in Redis, its news by a subscription."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from api.cluster import TIMEOUT, connect, failures, greet, name_space
from api.conf import LimitConf
from api.errors import Busy
from api.limits.base import Place, State, Wake
from api.limits.clock import boot_time
from api.limits.scripts import BEAT, DEAF, ENTER, LEAVE, LOOK, PART

log = logging.getLogger(__name__)
T = TypeVar("T")
MICRO = 1e6


@dataclass(slots=True)
class Held:
    """A request of this process: ``state`` as last heard, nothing before the server has answered."""

    client: str
    state: State | None = None


class RedisStore:
    """The ``Store`` of several hosts. Operations go over one connection, one after the other.

    While the server is away they raise ``Busy`` at once, and what works goes on working. Then the server is told what that is.
    """

    def __init__(self, conf: LimitConf, url: str, wake: Wake) -> None:
        self.conf, self.wake = conf, wake
        self.name = secrets.token_hex(8)
        self.client, self.ears = connect(url), connect(url)
        self.space = name_space(self.client)
        self.channel = f"{self.space}bell:{self.name}"
        self.scripts = {text: self.client.register_script(text) for text in (ENTER, LEAVE, LOOK, PART)}
        self.rules = json.dumps(
            {
                "rate": conf.rate.enabled,
                "window": round(conf.rate.window * MICRO),
                "quota": conf.rate.max_request,
                "block": conf.block.enabled,
                "queue": conf.concurrency.enabled,
                "most": conf.concurrency.max_concurrency,
                "line": conf.concurrency.max_queue,
            }
        )
        self.places = conf.block.enabled or conf.concurrency.enabled
        self.held: dict[int, Held] = {}
        self.owed: dict[int, bool] = {}  # leaves that are to be done: token, refund
        self.turn = asyncio.Lock()
        self.away = False  # the server did not answer the last time
        self.closed = False
        self.seen = float("-inf")  # when it was last told of our life
        self.settling = 0.0  # seconds for which it lets nobody in
        self.turns = itertools.count(1)
        self.told = (0, 0)  # its time, in microseconds, and our boot clock's then, in nanoseconds
        self.listening = asyncio.Event()
        self.keepers: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, conf: LimitConf, url: str, wake: Wake) -> Self:
        """Returns also when the server is away: it may come. Raises ``ConfigError`` if it is there and does not want us."""
        store = cls(conf, url, wake)
        await greet(store.client)
        store.keepers = [asyncio.create_task(store.listen()), asyncio.create_task(store.live())]
        with suppress(TimeoutError):  # whom the server knows and does not see listening is soon taken for dead
            async with asyncio.timeout(TIMEOUT):
                await store.listening.wait()
        with suppress(Busy):
            await store.look()
        if not store.away:
            await asyncio.sleep(store.settling)
        return store

    async def enter(self, token: int, client: str) -> Place:
        self.held[token] = Held(client)
        while isinstance(answer := await self.ask(lambda: self.arrive(token)), float):
            await asyncio.sleep(answer)
        return answer

    async def arrive(self, token: int) -> Place | float:
        """The place, or the seconds for which nobody is let in."""
        held = self.held[token]
        state, *numbers = await self.call(ENTER, token, held.client)
        if state < 0:
            return float(numbers[0]) / MICRO
        used, reset, working, queued = numbers
        if state <= State.WORKING:
            held.state = State(state)
        else:
            del self.held[token]
        return Place(State(state), used, reset / MICRO, working, queued)

    async def leave(self, token: int, *, refund: bool) -> None:
        await self.ask(self.settle, (token, refund))

    async def look(self) -> Mapping[int, State]:
        await self.ask(self.tell, trying=True)
        return {token: held.state for token, held in self.held.items() if held.state is not None}

    async def tell(self) -> None:
        """Tells the server that we live and what we hold, and hears how it stands."""
        claims = [[str(token), held.client, held.state] for token, held in self.held.items() if held.state is not None and self.places]
        rest, now, *found = await self.call(LOOK, json.dumps(claims))
        self.told = now, boot_time()
        self.settling, self.seen = rest / MICRO, asyncio.get_running_loop().time()
        self.hear({token: State(state) for token, state in zip(found[::2], found[1::2], strict=True)})

    def hear(self, moves: Mapping[int, State]) -> None:
        for token, state in moves.items():
            if (held := self.held.get(token)) and held.state is not None:
                held.state = max(held.state, state)
        if moves:
            self.wake(moves)

    async def close(self) -> None:
        self.closed = True
        for keeper in self.keepers:
            keeper.cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
        try:
            with suppress(Busy):
                await self.ask(lambda: self.call(PART))
        finally:
            await self.client.aclose()
            await self.ears.aclose()

    # How the server is asked.

    async def call(self, script: str, *arguments: Any) -> Any:
        """What the server answers. It is told the number of the command, and what time it should be there: its clock may be moved."""
        now, then = self.told
        reckoned = now and now + (boot_time() - then) // 1000
        return await self.scripts[script](keys=[self.space], args=[self.rules, self.name, next(self.turns), reckoned, *arguments])

    async def ask(self, work: Callable[[], Awaitable[T]], owed: tuple[int, bool] | None = None, *, trying: bool = False) -> T:
        """The work's result. It is done even if the caller is cancelled, and in the order of asking. Raises ``Busy``."""
        return await asyncio.shield(asyncio.ensure_future(self.perform(work, owed, trying)))

    async def perform(self, work: Callable[[], Awaitable[T]], owed: tuple[int, bool] | None, trying: bool) -> T:
        async with self.turn:
            if owed is not None and owed[0] in self.held:
                self.owed[owed[0]] = owed[1]
            if self.away and not trying:
                raise Busy()
            try:
                await self.settle()
                if (
                    work != self.tell and asyncio.get_running_loop().time() - self.seen > DEAF
                ):  # others may think us dead, and have our places
                    await self.tell()
                result = await work()
            except failures() as error:
                if not self.away:
                    log.error("limits: redis cannot be used, computing requests are refused until it can: %s", error)
                self.away = True
                raise Busy() from error
            if self.away:
                log.warning("limits: redis is back")
            self.away = False
            return result

    async def settle(self) -> None:
        """Does the leaves that are owed; one that fails is owed on."""
        for token, refund in list(self.owed.items()):
            if refund or self.places:
                await self.call(LEAVE, token, self.held[token].client, int(refund))
            del self.owed[token], self.held[token]

    # In the background.

    async def live(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            with suppress(Busy):
                await self.look()

    async def listen(self) -> None:
        """Hears of own requests that moved. The server sees by this connection's end that the process has ended."""
        while not self.closed:  # the library may swallow a cancel
            with suppress(*failures()):
                async with self.ears.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self.channel)
                    await pubsub.get_message(timeout=TIMEOUT)  # that it is so
                    self.listening.set()
                    while not self.away and not self.closed:
                        if message := await pubsub.get_message(timeout=BEAT):
                            token, state = map(int, message["data"].split())
                            self.hear({token: State(state)})
            await asyncio.sleep(BEAT)
