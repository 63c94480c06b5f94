"""What only the store of several hosts has: a server that goes away and comes back, leases, and the environment."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import redis

from api.cluster import fill_in, name_space
from api.conf import BlockConf, ConcurrencyConf, LimitConf, RateConf, parse_config
from api.errors import Blocked, Busy, ConfigError, ServerError
from api.limits import Limits
from api.limits.shared import RedisStore
from tests import redises
from tests.redises import RedisServer

MOST = 3
CONF = LimitConf(
    block=BlockConf(enabled=True, timeout=1.0),
    concurrency=ConcurrencyConf(enabled=True, max_concurrency=MOST, max_queue=6, timeout=60.0),
    rate=RateConf(enabled=True, max_request=1_000_000),
)
ONE = LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=4, timeout=60.0))
NOWHERE = Path("/nonexistent")
AWAY = 5.0 if os.environ.get("LONG") else 3.0  # seconds; more than the silence after which Redis was away and not its clients


class Traffic:
    """Clients of several hosts, each with limits of its own; counts from outside what is at work."""

    def __init__(self, hosts: list[Limits], seed: int) -> None:
        self.hosts, self.chance = hosts, random.Random(seed)
        self.working = self.done = self.refused = 0
        self.faults: list[str] = []
        self.stop = False

    async def come_again(self, client: str) -> None:
        while not self.stop:
            try:
                async with self.chance.choice(self.hosts).admit(client):
                    self.working += 1
                    if self.working > MOST:
                        self.faults.append(f"{self.working} at work")
                    try:
                        await asyncio.sleep(self.chance.uniform(0, 0.05))
                    finally:
                        self.working -= 1
                    self.done += 1
            except (Busy, Blocked) as error:
                self.refused += 1
                if not error.retry_after:
                    self.faults.append(f"{error!r} without a time to come again")
            except ServerError as error:
                self.faults.append(repr(error))
            await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


async def all_places_are_free(limits: Limits) -> None:
    async with asyncio.timeout(60), limits.admit("x"), limits.admit("y"), limits.admit("z") as last:
        assert last.place is not None
        assert last.place.working == MOST


async def freeze(server: RedisServer) -> None:
    await asyncio.to_thread(server.freeze)
    await asyncio.sleep(AWAY)
    await asyncio.to_thread(server.thaw)


async def restart(server: RedisServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(AWAY)
    await asyncio.to_thread(server.start)


async def blink(server: RedisServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize(("fault", "save"), [(freeze, False), (restart, False), (restart, True), (blink, False)])
def test_an_outage_refuses_and_leaves_no_trace(fault: Callable[[RedisServer], Awaitable[None]], save: bool) -> None:
    """Redis is gone for some seconds, or restarted, with what it held or without: nothing but 503, no limit exceeded, no place lost."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    server = RedisServer(save=save)

    async def act() -> None:
        url = server.new_url()
        hosts = [await Limits.open(CONF, NOWHERE, url) for _ in range(3)]
        traffic = Traffic(hosts, seed)
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(traffic.come_again(str(number)))
            await traffic.until(lambda: traffic.done > 50)
            await fault(server)
            before = traffic.done
            await traffic.until(lambda: traffic.done > before + 50)
            traffic.stop = True
        assert not traffic.faults, traffic.faults[:3]
        await all_places_are_free(hosts[0])
        for limits in hosts:
            assert not limits.waiters
            await limits.close()

    server.start()
    try:
        asyncio.run(act())
    finally:
        server.stop()


def test_what_works_and_waits_goes_on_after_an_outage() -> None:
    server = RedisServer()

    async def act() -> None:
        limits = await Limits.open(ONE, NOWHERE, server.new_url())
        log: list[str] = []

        async def come(name: str) -> None:
            async with limits.admit(None):
                log.append(name)

        async with limits.admit(None):
            waiting = []
            for name in ("first", "second"):
                waiting.append(asyncio.create_task(come(name)))
                while len(limits.waiting) != len(waiting):
                    await asyncio.sleep(0.001)
            await blink(server)  # and what it held is lost
            await asyncio.sleep(3.0)
            assert not log
        await asyncio.gather(*waiting)
        assert sorted(log) == ["first", "second"]
        await limits.close()

    server.start()
    try:
        asyncio.run(act())
    finally:
        server.stop()


def test_a_server_that_comes_later_is_used() -> None:
    server = RedisServer()

    async def act() -> None:
        limits = await Limits.open(CONF, NOWHERE, f"unix://{server.socket}")
        with pytest.raises(Busy):
            async with limits.admit("a"):
                pass
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(60):
            while True:
                with suppress(Busy):
                    async with limits.admit("a"):
                        break
                await asyncio.sleep(0.05)
        await limits.close()

    try:
        asyncio.run(act())
    finally:
        server.stop()


async def admitted(limits: Limits) -> None:
    async with asyncio.timeout(60), limits.admit(None):
        pass


async def freeze_holder(limits: Limits, url: str) -> None:
    """As where a machine stands still: no sign of life, no end of a connection, until the lease has run out."""
    assert isinstance(limits.store, RedisStore)
    for keeper in limits.store.keepers:
        keeper.cancel()
    with redis.Redis.from_url(url) as client:
        client.zadd(name_space(client) + "holders", {limits.store.name: 0})


def test_who_was_taken_for_dead_frees_nobody_elses_place() -> None:
    url = redises.shared().new_url()

    async def act() -> None:
        frozen, other = await Limits.open(ONE, NOWHERE, url), await Limits.open(ONE, NOWHERE, url)
        async with asyncio.timeout(60):
            async with AsyncExitStack() as held:
                await held.enter_async_context(frozen.admit(None))
                await freeze_holder(frozen, url)
                async with other.admit(None):
                    await held.aclose()  # what it had was given away: there is nothing to free
                    late = asyncio.create_task(admitted(other))
                    await asyncio.sleep(0.5)
                    assert not late.done()
            await late
        await frozen.close()
        await other.close()

    asyncio.run(act())


def test_who_was_taken_for_dead_and_wakes_counts_again() -> None:
    url = redises.shared().new_url()

    async def act() -> None:
        frozen, other = await Limits.open(ONE, NOWHERE, url), await Limits.open(ONE, NOWHERE, url)
        assert isinstance(frozen.store, RedisStore)
        async with asyncio.timeout(60):
            async with frozen.admit(None):
                await freeze_holder(frozen, url)
                async with other.admit(None):
                    await frozen.store.look()
                late = asyncio.create_task(admitted(other))
                await asyncio.sleep(0.5)
                assert not late.done()
            await late
        await frozen.close()
        await other.close()

    asyncio.run(act())


def test_an_enter_whose_answer_was_lost_leaves_nothing() -> None:
    """The server did it, and nobody knows: the next sign of life takes it back, out of the quota too."""
    url = redises.shared().new_url()

    async def act() -> None:
        conf = ONE.model_copy(update={"rate": RateConf(enabled=True, max_request=5)})
        limits = await Limits.open(conf, NOWHERE, url)
        assert isinstance(limits.store, RedisStore)
        await limits.store.enter(7, "a")
        del limits.store.held[7]
        async with asyncio.timeout(60), limits.admit("a"):
            pass
        async with limits.admit("a") as admission:
            assert admission.place is not None
            assert (admission.place.used, admission.place.working) == (2, 1)
        await limits.close()

    asyncio.run(act())


def test_a_server_that_refuses_is_told_at_the_start() -> None:
    url = redises.shared().new_url()
    with pytest.raises(ConfigError, match=r"cluster\.redis: the server refuses"):
        asyncio.run(Limits.open(CONF, NOWHERE, url + "&password=wrong"))


@pytest.mark.parametrize(
    ("toml", "host", "port", "password", "url"),
    [
        (None, None, "1", "p", None),
        (None, "h", None, None, "redis://h:6379/0"),
        (None, "h", "1", "p/@:", "redis://:p%2F%40%3A@h:1/0"),
        (None, "::1", None, None, "redis://[::1]:6379/0"),
        ("redis://a:2/3", "h", "1", None, "redis://a:2/3"),
        ("rediss://a:2/3", "h", "1", "p", "rediss://:p@a:2/3"),
        ("redis://user@a", None, None, "p", "redis://user:p@a"),
        ("redis://:q@a", None, None, "p", "redis://:q@a"),
        ("unix:///s?db=1", None, None, "p", "unix:///s?db=1&password=p"),
    ],
)
def test_the_environment_fills_in_what_the_file_leaves_open(
    toml: str | None, host: str | None, port: str | None, password: str | None, url: str | None
) -> None:
    cluster = {} if toml is None else {"redis": toml}
    config = parse_config({"cluster": cluster, "models": {"m": {"file": "m"}}})
    assert fill_in(config, host, port, password).cluster.redis == url


def test_a_port_that_is_none() -> None:
    with pytest.raises(ConfigError, match="REDIS_PORT"):
        fill_in(parse_config({"models": {"m": {"file": "m"}}}), "h", "x", None)
