"""Rate, block and queue as one process sees them; both stores run under these."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from api.conf import BlockConf, ConcurrencyConf, LimitConf, RateConf
from api.errors import Blocked, Busy, ConfigError, NoAddress, RateLimited, ServerError
from api.limits import Limits
from api.limits.bell import Bell, ring
from api.limits.local import CHECKPOINT, FILE, FOLDER, LocalStore
from tests import redises

Open = Callable[[LimitConf], Awaitable[Limits]]
Act = Callable[[Open], Awaitable[None]]
HERE = "192.0.2.1"
THERE = "192.0.2.2"

Play = Callable[[Act], None]


@pytest.fixture(params=["local", "redis"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scene that opens limits on one common state; closes what it leaves open."""
    url = redises.shared().new_url() if request.param == "redis" else None

    def run(act: Act) -> None:
        async def scene() -> None:
            opened: list[Limits] = []

            async def open_limits(conf: LimitConf) -> Limits:
                opened.append(await Limits.open(conf, tmp_path, url))
                return opened[-1]

            try:
                await act(open_limits)
            finally:
                for limits in opened:
                    await limits.close()

        asyncio.run(scene())

    return run


def rate(most: int = 3, window: float = 3600.0) -> LimitConf:
    return LimitConf(rate=RateConf(enabled=True, max_request=most, window=window))


def block(timeout: float = 10.0, poll: float = 0.25) -> LimitConf:
    return LimitConf(block=BlockConf(enabled=True, timeout=timeout, poll=poll))


def queue(most: int = 1, line: int = 24, timeout: float = 10.0, poll: float = 0.1) -> LimitConf:
    return LimitConf(concurrency=ConcurrencyConf(enabled=True, max_concurrency=most, max_queue=line, timeout=timeout, poll=poll))


async def refused(limits: Limits, client: str | None = HERE) -> ServerError:
    with pytest.raises(ServerError) as caught:
        async with limits.admit(client):
            pass
    return caught.value


async def waits(limits: Limits, count: int = 1) -> None:
    """Until ``count`` requests of this process wait."""
    async with asyncio.timeout(5):
        while len(limits.waiting) != count:
            await asyncio.sleep(0.001)


async def pass_through(limits: Limits, client: str = HERE, log: list[str] | None = None, name: str = "", rest: float = 0.0) -> None:
    async with limits.admit(client):
        if log is not None:
            log.append(name)
        await asyncio.sleep(rest)


def test_all_off_opens_nothing(play: Play, tmp_path: Path) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(LimitConf())
        async with limits.admit(None) as admission:
            await admission.refund()
            assert admission.headers() == {}
        assert not limits.needs_address
        assert not list(tmp_path.iterdir())

    play(act)


def test_address(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        for conf in (rate(), block()):
            limits = await open_limits(conf)
            assert limits.needs_address
            with pytest.raises(NoAddress):
                limits.admit(None)
        limits = await open_limits(queue())
        assert not limits.needs_address
        async with limits.admit(None):
            pass

    play(act)


def test_rate(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(rate(2, window=2.0))
        begun = time.monotonic()
        async with limits.admit(HERE) as admission:
            assert admission.headers() == {"RateLimit-Policy": '"default";q=2;w=2', "RateLimit": '"default";r=1;t=2'}
        await asyncio.sleep(0.6)
        await pass_through(limits)
        error = await refused(limits)
        assert isinstance(error, RateLimited)
        assert error.headers["RateLimit"].startswith('"default";r=0;t=')
        assert error.retry_after is not None
        assert error.retry_after == pytest.approx(2.0 - (time.monotonic() - begun), abs=0.5)
        await pass_through(limits, THERE)
        await asyncio.sleep(error.retry_after + 0.001)
        await pass_through(limits)  # the first has left the window, the second has not
        assert isinstance(await refused(limits), RateLimited)

    play(act)


def test_refused_costs_nothing_and_refund(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(rate(2))
        for _ in range(10):
            with suppress(ValueError):
                async with limits.admit(HERE) as admission:
                    assert "r=1" in admission.headers()["RateLimit"]
                    await admission.refund()
                    await admission.refund()
                    assert "r=2" in admission.headers()["RateLimit"]
                    raise ValueError
        await pass_through(limits)
        await pass_through(limits)
        for _ in range(3):
            assert isinstance(await refused(limits), RateLimited)

    play(act)


@pytest.mark.parametrize("line", [0, 1])
def test_refused_by_queue_or_block_gives_quota_back(play: Play, line: int) -> None:
    async def act(open_limits: Open) -> None:
        conf = rate(2).model_copy(update={"concurrency": queue(1, line, timeout=0.05).concurrency})
        limits = await open_limits(conf)
        async with limits.admit(THERE):
            for _ in range(3):
                error = await refused(limits)
                assert isinstance(error, Busy)
                assert error.headers["RateLimit"].startswith('"default";r=2;')
                assert error.headers["RateLimit"].endswith('"server";r=0')
        conf = rate(2).model_copy(update={"block": block(timeout=0.0).block})
        limits = await open_limits(conf)
        async with limits.admit(HERE):
            for _ in range(3):
                assert isinstance(await refused(limits), Blocked)
        async with limits.admit(HERE) as admission:
            assert '"default";r=0' in admission.headers()["RateLimit"]

    play(act)


def test_block(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(block(timeout=0.1))
        other = await open_limits(block(timeout=30.0, poll=0.02))
        log: list[str] = []
        async with limits.admit(HERE) as admission:
            assert admission.headers() == {
                "RateLimit-Policy": '"client";q=1;qu="concurrent-requests"',
                "RateLimit": '"client";r=0',
            }
            await pass_through(limits, THERE)
            waiting = [asyncio.create_task(pass_through(other, HERE, log, "first"))]
            await waits(other)
            waiting.append(asyncio.create_task(pass_through(other, HERE, log, "second")))
            await waits(other, 2)
            error = await refused(limits)
            assert isinstance(error, Blocked)
            assert error.retry_after is not None
            assert error.retry_after >= 1
            assert not log
        await asyncio.gather(*waiting)
        assert log == ["first", "second"]

    play(act)


def test_queue(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(queue(2, 2, timeout=30.0))
        log: list[str] = []
        async with AsyncExitStack() as held:
            await held.enter_async_context(limits.admit(None))
            admission = await held.enter_async_context(limits.admit(None))
            assert admission.headers()["RateLimit"] == '"server";r=0'
            waiting = []
            for name in ("first", "second"):
                waiting.append(asyncio.create_task(pass_through(limits, HERE, log, name)))
                await waits(limits, len(waiting))
            error = await refused(limits)
            assert isinstance(error, Busy)
            assert error.retry_after is not None
            assert error.retry_after >= 1
            assert not log
        await asyncio.gather(*waiting)
        assert log == ["first", "second"]

    play(act)


def test_queue_times_out(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(queue(1, 5, timeout=0.1))
        async with limits.admit(None):
            begun = time.monotonic()
            assert isinstance(await refused(limits), Busy)
            assert 0.1 <= time.monotonic() - begun < 30
        await pass_through(limits)

    play(act)


def test_blocked_requests_take_no_place_in_the_queue(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(block(timeout=30.0).model_copy(update={"concurrency": queue(1, 1, timeout=30.0).concurrency}))
        log: list[str] = []
        async with limits.admit(HERE):
            greedy = [asyncio.create_task(pass_through(limits, HERE, log, "greedy")) for _ in range(5)]
            await waits(limits, 5)
            modest = asyncio.create_task(pass_through(limits, THERE, log, "modest"))
            await waits(limits, 6)
        await asyncio.gather(*greedy, modest)
        assert log == ["modest"] + ["greedy"] * 5

    play(act)


def test_next_is_woken_at_once_also_in_another_member(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        here = await open_limits(queue(poll=60.0))
        for limits in (here, await open_limits(queue(poll=60.0))):
            took = []
            for _ in range(5):
                async with here.admit(None):
                    task = asyncio.create_task(pass_through(limits))
                    await waits(limits)
                    begun = time.monotonic()
                await task
                took.append(time.monotonic() - begun)
            assert min(took) < 1

    play(act)


@pytest.mark.parametrize("conf", [block(), queue()], ids=["block", "queue"])
def test_who_leaves_gives_back_at_once(play: Play, conf: LimitConf) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(conf.model_copy(update={"rate": rate(6).rate}))
        working = asyncio.create_task(pass_through(limits, rest=60.0))
        while not limits.waiters or limits.waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(pass_through(limits)) for _ in range(5)]
        await waits(limits, 5)
        for task in waiting[:4]:
            task.cancel()
        await asyncio.gather(*waiting[:4], return_exceptions=True)
        assert not waiting[4].done()
        working.cancel()
        async with asyncio.timeout(20):
            await waiting[4]
        # Counted: the one that was at work when it left, and the one that came to its end.
        async with limits.admit(HERE) as admission:
            assert '"default";r=3' in admission.headers()["RateLimit"]
        assert not limits.waiters
        assert not limits.waiting

    play(act)


def test_leaving_at_any_moment_loses_nothing(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        limits = await open_limits(queue(2, 100).model_copy(update={"rate": rate(10_000).rate, "block": block().block}))
        for i in range(300):  # before, during and after each step of entering and leaving
            task = asyncio.create_task(pass_through(limits, str(i % 3), rest=0.0002))
            await asyncio.sleep(i * 5e-6)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(20), limits.admit("x") as one, limits.admit("y") as two:
            assert one.place is not None
            assert two.place is not None
            assert (one.place.working, two.place.working) == (1, 2)  # themselves

    play(act)


def test_state_outlives_the_process(play: Play) -> None:
    async def act(open_limits: Open) -> None:
        conf = rate(3).model_copy(update={"concurrency": queue(1, 0).concurrency})
        limits = await open_limits(conf)
        await pass_through(limits)
        held = limits.admit(THERE)
        await held.__aenter__()  # closed while it holds the only place
        await limits.close()
        limits.store = None
        limits = await open_limits(conf)
        await pass_through(limits)
        await pass_through(limits)
        assert isinstance(await refused(limits), RateLimited)

    play(act)


# What only the store of one host has


def test_quota_survives_a_reboot(tmp_path: Path) -> None:
    """The boot clock starts anew; the windows go on."""

    async def act() -> None:
        limits = await Limits.open(rate(2), tmp_path)
        await pass_through(limits)
        await limits.close()
        with sqlite3.connect(tmp_path / FOLDER / FILE) as db:
            (was,) = db.execute("SELECT anchor FROM clock").fetchone()
            # Booted anew a day of uptime ago, and the wall clock is an hour behind what was counted.
            db.execute("UPDATE clock SET boot = 'another', anchor = anchor - 86400000000000")
            db.execute("UPDATE hit SET at = at + 3600000000000")
            db.execute("UPDATE quota SET latest = latest + 3600000000000")
        db.close()
        limits = await Limits.open(rate(2), tmp_path)
        assert isinstance(limits.store, LocalStore)
        assert limits.store.ledger.anchor > was + 3_599_000_000_000
        await pass_through(limits)
        error = await refused(limits)
        assert error.retry_after is not None
        assert 3590 < error.retry_after <= 3600
        await limits.close()

    asyncio.run(act())


def test_storage_that_fails_refuses_and_recovers(tmp_path: Path) -> None:
    async def act() -> None:
        limits = await Limits.open(queue(1, 0), tmp_path)
        assert isinstance(limits.store, LocalStore)
        limits.store.patience = 0.02
        jam = sqlite3.connect(tmp_path / FOLDER / FILE, isolation_level=None)
        jam.execute("BEGIN IMMEDIATE")
        assert isinstance(await refused(limits), Busy)
        jam.execute("ROLLBACK")
        async with limits.admit(None):
            jam.execute("BEGIN IMMEDIATE")
        jam.execute("ROLLBACK")  # by now the place could not be freed
        async with asyncio.timeout(10):
            while jam.execute("SELECT count(*) FROM ticket").fetchone() != (0,):
                await asyncio.sleep(0.05)
        jam.close()
        await limits.close()

    asyncio.run(act())


def test_others_at_the_file_are_waited_for_beside_the_event_loop(tmp_path: Path) -> None:
    """Those who ask meanwhile get their places in the order of asking."""

    async def act() -> None:
        limits = await Limits.open(queue(1, 8), tmp_path)
        jam = sqlite3.connect(tmp_path / FOLDER / FILE, isolation_level=None)
        jam.execute("BEGIN IMMEDIATE")
        served: list[int] = []

        async def ask(number: int) -> None:
            async with limits.admit(None):
                served.append(number)

        asking = [asyncio.create_task(ask(number)) for number in range(4)]
        for _ in range(20):
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 0.5
        assert not served
        jam.execute("ROLLBACK")
        asking.append(asyncio.create_task(ask(4)))
        await asyncio.gather(*asking)
        assert served == [0, 1, 2, 3, 4]
        jam.close()
        await limits.close()

    asyncio.run(act())


def test_the_log_of_the_state_begins_anew(tmp_path: Path) -> None:
    """SQLite's WAL, which no transaction stops to write back."""

    async def act() -> None:
        limits = await Limits.open(queue(1, 8), tmp_path)
        assert isinstance(limits.store, LocalStore)
        sizes = []
        for _ in range(8):
            for _ in range(CHECKPOINT // 2):  # one to enter and one to leave
                await pass_through(limits)
            await asyncio.to_thread(limits.store.thread.submit(int).result)
            sizes.append((tmp_path / FOLDER / f"{FILE}-wal").stat().st_size)
        assert sizes[-1] <= sizes[0]
        await limits.close()

    asyncio.run(act())


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / FILE).write_bytes(b"not a database, not by any means; " * 100)
    with pytest.raises(ConfigError, match=r"state cannot be opened.*not a database"):
        asyncio.run(Limits.open(rate(), tmp_path))
    assert not list(folder.glob("*.bell"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        asyncio.run(Limits.open(rate(), tmp_path / "file"))


def test_files_are_private_and_gone_with_their_process(tmp_path: Path) -> None:
    async def act() -> None:
        limits = await Limits.open(rate(), tmp_path)
        folder = tmp_path / FOLDER
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.glob("*.bell"))) == 1
        await limits.close()
        assert not list(folder.glob("*.bell"))

    asyncio.run(act())


def test_a_bell_that_cannot_be_looked_at_may_be_alive(tmp_path: Path) -> None:
    bell = Bell(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # no descriptor is free
        assert ring(tmp_path, bell.name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ring(tmp_path, bell.name)
    bell.close()
    assert not ring(tmp_path, bell.name)


def test_a_forked_child_keeps_no_place_of_its_dead_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:  # holds the only place, forks a child that stays, and is killed

        async def hold() -> None:
            limits = await Limits.open(queue(1, 1), tmp_path)
            held = limits.admit(None)
            await held.__aenter__()
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, child.to_bytes(8, "little"))
            await asyncio.sleep(60)

        try:
            asyncio.run(hold())
        finally:
            os._exit(1)
    child = int.from_bytes(os.read(read, 8), "little")

    async def act() -> None:
        limits = await Limits.open(queue(1, 1, poll=60.0), tmp_path)
        task = asyncio.create_task(pass_through(limits))
        await waits(limits)
        await asyncio.sleep(0.3)
        assert not task.done()
        os.kill(parent, signal.SIGKILL)
        async with asyncio.timeout(20):
            await task
        await limits.close()

    try:
        asyncio.run(act())
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.close(read)
        os.close(write)
