"""All cores for one large picture, as far as they are free."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

Result = TypeVar("Result")


class Crew:
    """At most so many ``cores``, of those that the process may use. Its threads are begun when there is something for them."""

    def __init__(self, cores: int) -> None:
        self.cores = cores

    @cached_property
    def helpers(self) -> ThreadPoolExecutor | None:
        """Threads beside the one that asks; none where there is one core."""
        count = min(self.cores, len(os.sched_getaffinity(0))) - 1
        return ThreadPoolExecutor(count, "helper") if count > 0 else None

    def share_out(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the calls return, in their order. The calling thread does what no helper has begun: it waits for nobody else's picture."""
        helpers = self.helpers if len(calls) > 1 else None
        if helpers is None:
            return [call() for call in calls]
        given = [helpers.submit(call) for call in calls[1:]]
        results = [calls[0]()]
        taken = {index: calls[index + 1]() for index in reversed(range(len(given))) if given[index].cancel()}
        return results + [taken[index] if index in taken else given[index].result() for index in range(len(given))]


CREW = Crew(8)  # a megapixel is encoded in a millisecond or two then
