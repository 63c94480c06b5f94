"""Waiting for work: for several pieces of it, and only as long as somebody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from api.errors import Cancelled, ServerError

T = TypeVar("T")
TOGETHER = 32
"""Pictures of one request that an engine holds at once: two large batches, so that one forms while the other is computed."""


async def few_at_a_time(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The calls' results in their order; no more of them run together than leave room in the engines' queues. If one fails, all end."""
    room = asyncio.Semaphore(TOGETHER)

    async def run(call: Callable[[], Awaitable[T]]) -> T:
        async with room:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
    except* ServerError as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


class Line:
    """A client's connection as its requests see it. Whoever serves HTTP may put one into a request's ASGI extension "line".

    ``listen`` is called when somebody wants to know: a connection that is not read does not tell that it has ended.
    """

    def __init__(self, listen: Callable[[], object] = lambda: None) -> None:
        self.listen, self.cut = listen, False
        self.told: set[Callable[[], object]] = set()

    def end(self) -> None:
        """The client has left."""
        self.cut = True
        for call in list(self.told):
            call()


async def until_gone(line: Line | None, gone: Callable[[], Awaitable[None]], work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; raises ``Cancelled``, and cancels it, once ``line`` is cut or, where there is no line, ``gone`` returns."""
    if line is not None:
        return await until_cut(line, work)
    line = Line()
    leaving = asyncio.ensure_future(watch(line, gone))
    try:
        await asyncio.sleep(0)
        return await until_cut(line, work)
    finally:
        leaving.cancel()
        work.close()  # where it was not begun


async def watch(line: Line, gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
    line.end()


async def until_cut(line: Line, work: Coroutine[Any, Any, T]) -> T:
    if line.cut:
        work.close()  # who has left already is not worked for at all
        raise Cancelled()
    task = asyncio.current_task()
    assert task is not None
    line.told.add(task.cancel)
    line.listen()
    try:
        return await work
    except asyncio.CancelledError:
        if line.cut and not task.uncancel():
            raise Cancelled() from None
        raise
    finally:
        line.told.discard(task.cancel)
