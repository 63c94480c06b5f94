"""A network between several hosts' limits and Redis that cuts, delays, stalls and goes dark, and a Redis whose clock is moved."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import redis

from api.cluster import name_space
from api.conf import ConcurrencyConf, LimitConf, RateConf
from api.errors import RateLimited
from api.limits import Limits
from api.limits.shared import RedisStore
from tests import redises
from tests.faults import Proxy, Watch, draw_seed, proper, wait_for
from tests.serving import Crowd, serve
from tests.test_cluster import host
from tests.test_limits_redis import CONF, NOWHERE, ONE, Traffic, all_places_are_free

LONG = bool(os.environ.get("LONG"))
ROUNDS = 10 if LONG else 1
Fault = Callable[[Proxy, random.Random], Awaitable[None]]


def through(network: Proxy) -> tuple[str, str]:
    """A new database of the shared server: its URL, and the one through the network."""
    straight = redises.shared().new_url()
    return straight, f"redis://127.0.0.1:{network.port}/{straight.rpartition('=')[2]}"


async def cuts(network: Proxy, chance: random.Random) -> None:
    for _ in range(10 * ROUNDS):
        await asyncio.sleep(chance.uniform(0.0, 0.2))
        await asyncio.to_thread(network.cut)


async def lost_answers(network: Proxy, chance: random.Random) -> None:
    for _ in range(5 * ROUNDS):
        network.deafen(b"EVALSHA")
        await asyncio.sleep(chance.uniform(0.0, 0.2))
        await asyncio.to_thread(network.mend)
        await asyncio.sleep(chance.uniform(0.0, 0.2))


async def delays(network: Proxy, chance: random.Random) -> None:
    """Some commands arrive when their sender has long given them up."""
    network.slow(0.0, 1.5)
    await asyncio.sleep(3.0 * ROUNDS)
    await asyncio.to_thread(network.mend)


def lasting(strike: Callable[[Proxy], None], least: float, most: float) -> Fault:
    """A fault that is over after so many seconds, from … to, and comes again."""

    async def fault(network: Proxy, chance: random.Random) -> None:
        for _ in range(ROUNDS):
            await asyncio.to_thread(strike, network)
            await asyncio.sleep(chance.uniform(least, most))
            await asyncio.to_thread(network.mend)
            await asyncio.sleep(chance.uniform(0.0, 1.0))

    return fault


FAULTS: dict[str, Fault] = {
    "cuts": cuts,
    "lost answers": lost_answers,
    "delays": delays,
    "stall": lasting(Proxy.stall, 1.2, 1.8),
    "dark": lasting(Proxy.darken, 2.5, 5.0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_network_exceeds_no_limit_and_keeps_no_place(name: str) -> None:
    """Two hosts behind it, and one that reaches the server as ever and would be let in by mistake."""
    seed = draw_seed()

    async def act(network: Proxy) -> None:
        straight, crooked = through(network)
        hosts = [await Limits.open(CONF, NOWHERE, url) for url in (crooked, crooked, straight)]
        traffic = Traffic(hosts, seed)
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(traffic.come_again(str(number)))
            await traffic.until(lambda: traffic.done > 50)
            await FAULTS[name](network, traffic.chance)
            watch, before = Watch(), traffic.done
            await traffic.until(lambda: traffic.done > before + 50)
            traffic.stop = True
        assert not traffic.faults, traffic.faults[:3]
        await all_places_are_free(hosts[0])
        watch.tell(f"{name}: Redis' limits admit again, {traffic.refused} refused meanwhile")
        for limits in hosts:
            assert not limits.waiters
            await limits.close()

    with Proxy(redises.shared().socket, seed) as network:
        asyncio.run(act(network))


async def admitted(limits: Limits, client: str | None = None) -> None:
    async with asyncio.timeout(60), limits.admit(client):
        pass


def test_a_command_that_comes_late_does_nothing() -> None:
    """A host says what it has, is not heard in time, and goes on: what it said must not take from it what it has got since."""

    async def act(network: Proxy) -> None:
        straight, crooked = through(network)
        here, there = await Limits.open(ONE, NOWHERE, crooked), await Limits.open(ONE, NOWHERE, straight)
        assert isinstance(here.store, RedisStore)
        network.slow(4.0, 4.0)
        async with asyncio.timeout(60):
            while not here.store.away:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(network.mend)  # for new connections; what was sent is still on its way
            while here.store.away:
                await asyncio.sleep(0.01)
        async with here.admit(None):
            waiting = asyncio.create_task(admitted(there))
            for _ in range(50):
                await asyncio.sleep(0.1)
                assert not waiting.done(), "two are at work where one may be"
        await waiting
        await here.close()
        await there.close()

    with Proxy(redises.shared().socket) as network:
        asyncio.run(act(network))


def test_a_moved_clock_of_redis_gives_nothing_away_and_keeps_nothing() -> None:
    """Moved by what the scripts add to it: Redis itself, with its allocator, does not run under libfaketime."""
    url = redises.shared().new_url()
    conf = LimitConf(
        concurrency=ConcurrencyConf(enabled=True, max_concurrency=1, max_queue=4, timeout=60.0),
        rate=RateConf(enabled=True, max_request=3, window=3600.0),
    )

    def move(seconds: int) -> None:
        with redis.Redis.from_url(url) as client:
            client.hincrby(name_space(client) + "clock", "ahead", seconds * 10**6)
            assert client.ttl(name_space(client) + "hits:greedy") > 2 * 3600, "it would be gone with a clock that is moved"

    async def act() -> None:
        here, there = await Limits.open(conf, NOWHERE, url), await Limits.open(conf, NOWHERE, url)
        for _ in range(3):
            await admitted(here, "greedy")
        for seconds in (3700, -3600):
            async with here.admit(f"a{seconds}"):
                await asyncio.to_thread(move, seconds)
                waiting = asyncio.create_task(admitted(there, f"b{seconds}"))
                await asyncio.sleep(1.5)
                assert not waiting.done(), "two are at work where one may be"
                with pytest.raises(RateLimited) as caught:
                    await admitted(there, "greedy")
                assert caught.value.retry_after is not None
                assert 3000 < caught.value.retry_after <= 3600
            watch = Watch()
            await waiting
            watch.tell(f"Redis' clock was moved by {seconds} s: the next is let in")
        for limits in (here, there):
            await limits.close()

    asyncio.run(act())


def test_redis_is_gone_for_five_seconds_under_load(tmp_path: Path) -> None:
    """As clients see it: an answer, or 503 and when to come again."""
    concurrency = {"enabled": True, "max_concurrency": 2, "max_queue": 8, "timeout": 20.0}
    straight = redises.shared().new_url()
    statuses: Counter[int] = Counter()
    improper: list[httpx.Response] = []

    with Proxy(redises.shared().socket) as network:
        url = f"redis://127.0.0.1:{network.port}/{straight.rpartition('=')[2]}"
        limit = {"concurrency": concurrency, "block": {"enabled": False}}
        with serve(host(tmp_path / "a", url, limit=limit)) as server:

            def come_again() -> None:
                with httpx.Client(base_url=server.url, timeout=60) as client:
                    while not crowd.stop.wait(0.02):
                        answer = client.post("/plain/generate")
                        statuses[answer.status_code] += 1
                        if answer.status_code not in (200, 503) or not proper(answer):
                            improper.append(answer)

            with Crowd(*[come_again] * 6) as crowd:
                wait_for(lambda: statuses[200] > 10, "requests are answered")
                network.fail()
                time.sleep(5.0)
                network.mend()
                watch, before = Watch(), statuses[200]
                wait_for(lambda: statuses[200] > before, "a request is answered again")
                watch.tell("Redis was gone for 5 s, over HTTP")
                wait_for(lambda: statuses[200] > before + 10, "requests are answered again")
            assert not improper, [(answer.status_code, answer.text[:200]) for answer in improper[:3]]
            assert statuses[503]
            assert server.client.post("/plain/generate").status_code == 200
