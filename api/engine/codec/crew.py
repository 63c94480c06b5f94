"""All cores for one large picture, as far as they are free."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")
MOST = 7  # helpers: a picture is encoded in a millisecond then


@cache
def helpers() -> ThreadPoolExecutor | None:
    """Threads beside the one that asks; none where there is one core."""
    cores = len(os.sched_getaffinity(0))
    return ThreadPoolExecutor(min(cores - 1, MOST), "helper") if cores > 1 else None


def share_out(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """What the calls return, in their order. The calling thread does whatever no helper has begun: it waits for nobody else's picture."""
    crew = helpers() if len(calls) > 1 else None
    if crew is None:
        return [call() for call in calls]
    given = [crew.submit(call) for call in calls[1:]]
    results = [calls[0]()]
    taken = {index: calls[index + 1]() for index in reversed(range(len(given))) if given[index].cancel()}
    return results + [taken[index] if index in taken else given[index].result() for index in range(len(given))]
