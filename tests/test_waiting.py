"""Work is done only as long as its client is there."""

from __future__ import annotations

import asyncio

import pytest

from api.errors import Cancelled
from api.waiting import Line, until_gone


class Work:
    """Something that takes for ever, or until ``end`` is set."""

    def __init__(self) -> None:
        self.begun = self.cancelled = False
        self.end = asyncio.Event()

    async def run(self) -> str:
        self.begun = True
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "done"


class Client:
    """Leaves when its test says so; ``line`` if the server tells of it by one."""

    def __init__(self, with_line: bool) -> None:
        self.line = Line() if with_line else None
        self.left = asyncio.Event()

    async def gone(self) -> None:
        await self.left.wait()

    def leave(self) -> None:
        self.left.set()
        if self.line is not None:
            self.line.end()

    def work(self, work: Work) -> asyncio.Task[str]:
        return asyncio.create_task(until_gone(self.line, self.gone, work.run()))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("with_line", [True, False])
def test_who_has_left_is_not_worked_for_at_all(with_line: bool) -> None:
    async def check() -> None:
        client, work = Client(with_line), Work()
        client.leave()
        with pytest.raises(Cancelled):
            await client.work(work)
        assert not work.begun

    asyncio.run(check())


@pytest.mark.parametrize("with_line", [True, False])
def test_work_ends_when_the_client_leaves(with_line: bool) -> None:
    async def check() -> None:
        client, work = Client(with_line), Work()
        task = client.work(work)
        await settle()
        assert work.begun
        client.leave()
        with pytest.raises(Cancelled):
            await task
        assert work.cancelled
        assert not task.cancelled()

    asyncio.run(check())


@pytest.mark.parametrize("with_line", [True, False])
def test_work_is_answered_and_nothing_is_left_behind(with_line: bool) -> None:
    async def check() -> None:
        client, work = Client(with_line), Work()
        task = client.work(work)
        await settle()
        work.end.set()
        assert await task == "done"
        assert client.line is None or not client.line.told
        client.leave()
        await settle()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(check())


def test_who_cancels_the_request_at_once_leaves_nothing_behind() -> None:
    async def check() -> None:
        client, work = Client(with_line=False), Work()
        task = client.work(work)
        await asyncio.sleep(0)  # it is about to hear whether the client is still there
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert len(asyncio.all_tasks()) == 1
        assert not work.begun

    asyncio.run(check())


@pytest.mark.parametrize("with_line", [True, False])
@pytest.mark.parametrize("leaves", [True, False])
def test_who_cancels_the_request_itself_is_obeyed(with_line: bool, leaves: bool) -> None:
    """Also when the client leaves at the same moment."""

    async def check() -> None:
        client, work = Client(with_line), Work()
        task = client.work(work)
        await settle()
        task.cancel()
        if leaves:
            client.leave()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert work.cancelled

    asyncio.run(check())
