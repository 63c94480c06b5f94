"""What the gate asks of the place that keeps the state, be it a file of this host or a server for several hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class State(IntEnum):
    """Where a request stands. It only moves from BLOCKED over QUEUED to WORKING; the last three are ends."""

    BLOCKED = 0  # waits for the same client's earlier request
    QUEUED = 1  # waits for capacity
    WORKING = 2
    OVER_RATE = 3  # refused: the client's quota is used up
    OVER_QUEUE = 4  # refused: nobody else may wait
    LOST = 5  # its place is gone from the store


@dataclass(frozen=True, slots=True)
class Place:
    """What a request got on arrival, and how much was used then (its own share included where it has one)."""

    state: State
    used: int = 0
    """The client's requests in the window."""
    reset: float = 0.0
    """Seconds until a request leaves the window; of a request refused for its rate, until one may come again."""
    working: int = 0
    queued: int = 0


Wake = Callable[[Mapping[int, State]], None]
"""Called in the event loop with own requests that moved; with nothing when others did something that is worth a look."""


class Store(Protocol):
    """Each operation is atomic over all processes. Failures of the storage itself raise ``errors.Busy``.

    ``token`` names a request within its process. A process that dies leaves its places to the others within a second.
    """

    async def enter(self, token: int, client: str) -> Place:
        """Counts the request and gives it a place, or refuses it without a trace."""
        ...

    async def leave(self, token: int, *, refund: bool) -> None:
        """Frees the place, moves those who wait, and takes the request out of the quota if ``refund``.

        Unknown tokens are fine. Happens even if the caller is cancelled, and after an ``enter`` that was.
        """
        ...

    async def look(self) -> Mapping[int, State]:
        """This process's requests that have a place; also frees the places of the dead."""
        ...

    async def close(self) -> None:
        """Frees all places of this process."""
        ...
