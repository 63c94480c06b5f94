"""Who is next: tickets wait in the order of their turns, which all clients get in equal measure."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from api.models.jobs import Job


@dataclass(eq=False, slots=True)
class Ticket:
    """A job in the lane."""

    job: Job
    client: str
    deadline: float
    alone: bool = False
    progress: bool = False
    abandoned: bool = False
    prepared: bool = False  # by its model, which need not be in memory when the ticket comes
    arrived: float = 0.0
    turn: tuple[float, int] = (0.0, 0)


class Queue:
    """Waiting tickets in the order of their turns: start-time fair queueing among clients (Goyal et al., 1996).

    Each client's next ticket gets a turn one after its last, never before the turn being served; so a client with
    a hundred waiting requests and one with a single request alternate. Not thread-safe.
    """

    def __init__(self) -> None:
        self.waiting: list[Ticket] = []
        self.last: dict[str, float] = {}  # client → the latest turn that it was given
        self.served: dict[str, float] = {}  # and that it took
        self.now, self.count = 0.0, 0

    def add(self, ticket: Ticket) -> None:
        turn = max(self.now, self.last.get(ticket.client, 0.0)) + 1.0
        self.last[ticket.client] = turn
        self.count += 1
        ticket.turn = (turn, self.count)
        bisect.insort(self.waiting, ticket, key=lambda item: item.turn)

    def take(self, tickets: Sequence[Ticket]) -> None:
        """Removes tickets whose turn it is."""
        chosen = set(map(id, tickets))
        self.waiting = [ticket for ticket in self.waiting if id(ticket) not in chosen]
        self.now = max(self.now, tickets[0].turn[0])
        for ticket in tickets:
            self.served[ticket.client] = max(ticket.turn[0], self.served.get(ticket.client, 0.0))
        if not self.waiting:
            self.last.clear()
            self.served.clear()
            self.now = 0.0
        elif len(self.last) > 2 * len(self.waiting) + 64:
            for turns in (self.last, self.served):
                for client in [client for client, turn in turns.items() if turn <= self.now]:
                    del turns[client]

    def sweep(self, now: float) -> list[Ticket]:
        """Removes and returns what nobody waits for any more."""
        dead = [ticket for ticket in self.waiting if ticket.abandoned or ticket.deadline <= now]
        if dead:
            gone = set(map(id, dead))
            self.waiting = [ticket for ticket in self.waiting if id(ticket) not in gone]
            self.give_back(dead)
        return dead

    def give_back(self, dead: Sequence[Ticket]) -> None:
        """Clients have the turns again that their tickets did not take, after those that still wait."""
        for client in {ticket.client for ticket in dead}:
            waiting = [ticket.turn[0] for ticket in self.waiting if ticket.client == client]
            self.last[client] = max(self.served.get(client, 0.0), *waiting, 0.0)
