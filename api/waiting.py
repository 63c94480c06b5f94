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


async def until_gone(gone: Callable[[], Awaitable[None]], work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; raises ``Cancelled``, and cancels it, once ``gone`` returns."""
    leaving = asyncio.ensure_future(gone())
    await asyncio.sleep(0)
    if leaving.done():
        work.close()  # who has left already is not worked for at all
        raise Cancelled()
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled()
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
