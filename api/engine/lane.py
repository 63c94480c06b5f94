"""The lane: one queue and one thread that keep one device busy.

A batch is the job whose turn it is and all waiting jobs with its key. The lane does not wait for company while the device is
idle, but for a moment after a long batch, whose clients are likely to come back together. It knows neither sockets nor pictures'
formats: a ``Listener`` takes what comes out.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from api.engine.shelf import Shelf
from api.errors import Busy, Cancelled, Expired, NotReady, ServerError
from api.models.base import Previews, Step
from api.models.jobs import Job, Output

log = logging.getLogger(__name__)
WORTH = 0.05  # of a long batch's time may be waited for the next one to be larger


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


class Listener(Protocol):
    """Told on the lane's thread what becomes of tickets; each ticket ends in ``finished`` or ``failed``, once.

    ``previews`` gives the ticket's own preview alone.
    """

    def started(self, batch: Sequence[Ticket]) -> None: ...
    def progressed(self, ticket: Ticket, index: int, total: int, previews: Previews | None) -> None: ...
    def finished(self, batch: Sequence[Ticket], outputs: Sequence[Output]) -> None: ...
    def failed(self, ticket: Ticket, error: ServerError) -> None: ...


class Queue:
    """Waiting tickets in the order of their turns: start-time fair queueing among clients (Goyal et al., 1996).

    Each client's next ticket gets a turn one after its last, never before the turn being served; so a client with
    a hundred waiting requests and one with a single request alternate. Not thread-safe.
    """

    def __init__(self) -> None:
        self.waiting: list[Ticket] = []
        self.last: dict[str, float] = {}
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
        if not self.waiting:
            self.last.clear()
            self.now = 0.0
        elif len(self.last) > 2 * len(self.waiting) + 64:
            self.last = {client: turn for client, turn in self.last.items() if turn > self.now}

    def sweep(self, now: float) -> list[Ticket]:
        """Removes and returns what nobody waits for any more."""
        dead = [ticket for ticket in self.waiting if ticket.abandoned or ticket.deadline <= now]
        if dead:
            gone = set(map(id, dead))
            self.waiting = [ticket for ticket in self.waiting if id(ticket) not in gone]
        return dead


class Company:
    """How many long jobs are likely to come together after a batch that took ``seconds``, and until when that is worth waiting for.

    Eight clients that each ask again when they are answered would else be served as one and seven in turn.
    """

    def __init__(self, size: int = 0, seconds: float = 0.0) -> None:
        self.size, self.end = size, time.monotonic() + seconds * WORTH

    def patience(self) -> float:
        return max(0.0, self.end - time.monotonic())


class Lane:
    """Serves the models of ``shelf`` on one device: ``submit`` and ``cancel`` from any thread, ``run`` on a thread of its own.

    A job whose model is parked waits until that is loaded; with ``patient`` false it is refused, and the model loaded for the next one.
    """

    def __init__(self, shelf: Shelf, listener: Listener, *, max_batch: Callable[[str], int], max_queue: int, patient: bool = True) -> None:
        self.shelf, self.listener = shelf, listener
        self.max_batch, self.max_queue, self.patient = max_batch, max_queue, patient
        self.queue = Queue()
        self.wanted: str | None = None  # a parked model that somebody was refused for
        self.company = Company()
        self.ready = threading.Condition()
        self.closing = False
        self.narrowed: dict[Hashable, int] = {}  # key → the batch size that the memory had room for

    def submit(self, ticket: Ticket) -> None:
        """Queues a ticket. Raises ``BadInput``, ``NotReady`` or ``Busy``."""
        model = self.shelf.loaded.get(ticket.job.model)
        if model is not None:
            ticket.job, ticket.prepared = model.prepare(ticket.job), True
        elif not self.shelf.knows(ticket.job.model):
            raise NotReady()
        elif not self.patient:
            self.want(ticket.job.model)
        ticket.arrived = time.monotonic()
        with self.ready:
            if self.closing or len(self.queue.waiting) >= self.max_queue:
                raise Busy()
            self.queue.add(ticket)
            self.ready.notify()

    def want(self, model_id: str) -> None:
        """Has a parked model loaded. Raises ``NotReady`` with the time that it took last."""
        with self.ready:
            self.wanted = model_id
            self.ready.notify()
        raise NotReady(retry_after=self.shelf.seconds[model_id] + 1.0)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for the ticket any more: it does not start, and a long one stops at its next step."""
        ticket.abandoned = True

    def close(self) -> None:
        """Lets ``run`` return when the queue is empty."""
        with self.ready:
            self.closing = True
            self.ready.notify()

    def run(self) -> None:
        """Computes until ``close``."""
        while batch := self.next_batch():
            self.compute(batch)

    def next_batch(self) -> list[Ticket]:
        """Waits for work; nothing means that the lane is closed and empty."""
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.queue.waiting or self.closing or self.wanted)
                self.ready.wait_for(self.is_complete, self.company.patience())
                dead = self.queue.sweep(time.monotonic())
                absent = self.absent()
                batch = [] if absent else self.choose(self.queue.waiting)
                done = self.closing and not self.queue.waiting
            self.bury(dead)
            if absent:
                self.fetch(absent)
            elif batch or done:
                return batch

    def is_complete(self) -> bool:
        """Whether there is nothing to be gained by waiting: all that may come are there, or somebody is in a hurry."""
        if self.closing or self.wanted or len(self.queue.waiting) >= self.company.size:
            return True
        return any(not self.can_run(ticket) or not self.is_long(ticket.job) for ticket in self.queue.waiting)

    def absent(self) -> str | None:
        """The model that has to be loaded before anything else is done."""
        wanted, self.wanted = self.wanted, None
        if wanted is None and self.queue.waiting:
            head = self.queue.waiting[0]
            wanted = None if self.can_run(head) else head.job.model
        return wanted

    def fetch(self, model_id: str) -> None:
        """Loads a model and prepares the jobs that wait for it; what is wrong with them is told them."""
        try:
            model = self.shelf.bring(model_id)
        except Exception as error:
            if is_fatal(error):
                raise
            log.error("%s cannot be loaded again: %s", model_id, error)
            model = None
        with self.ready:
            waiting = [ticket for ticket in self.queue.waiting if ticket.job.model == model_id and (model is None or not ticket.prepared)]
        for ticket in waiting:
            try:
                if model is None:
                    raise NotReady("the model cannot be loaded", retry_after=60.0)
                ticket.job, ticket.prepared = model.prepare(ticket.job), True
            except Exception as error:
                with self.ready:
                    self.queue.take([ticket])
                self.listener.failed(ticket, explain(error))

    def choose(self, candidates: Sequence[Ticket]) -> list[Ticket]:
        """The batch whose turn it is among ``candidates``, taken out of the queue; the first of them can be run."""
        if not candidates:
            return []
        head = candidates[0]
        batch = [head]
        if not head.alone:
            key = self.key(head)
            room = min(self.max_batch(head.job.model), self.narrowed.get(key, 1 << 30))
            fellows = (ticket for ticket in candidates if self.can_run(ticket) and not ticket.alone)
            batch = list(itertools.islice((ticket for ticket in fellows if self.key(ticket) == key), room))
        self.queue.take(batch)
        return batch

    def can_run(self, ticket: Ticket) -> bool:
        return ticket.prepared and ticket.job.model in self.shelf.loaded

    def key(self, ticket: Ticket) -> Hashable:
        return ticket.job.model, self.shelf.loaded[ticket.job.model].key(ticket.job)

    def bury(self, dead: Sequence[Ticket]) -> None:
        for ticket in dead:
            self.listener.failed(ticket, Cancelled() if ticket.abandoned else Expired())

    def compute(self, batch: Sequence[Ticket]) -> None:
        """Runs one batch and delivers what came of it."""
        self.listener.started(batch)
        try:
            outputs = self.attempt(batch)
        except Cancelled:
            self.bury(batch)
        except Exception as error:
            self.recover(batch, error)
        else:
            self.listener.finished(batch, outputs)

    def attempt(self, batch: Sequence[Ticket]) -> Sequence[Output]:
        model = self.shelf.bring(batch[0].job.model)
        begun = time.monotonic()
        outputs = model.run([ticket.job for ticket in batch], self.stepper(batch))
        if self.is_long(batch[0].job):
            together = min(len(batch) + len(self.queue.waiting), self.max_batch(batch[0].job.model))
            self.company = Company(together, time.monotonic() - begun)
        if len(outputs) != len(batch):
            raise RuntimeError(f"{model.info.id} answered {len(outputs)} outputs for {len(batch)} jobs")
        return outputs

    def recover(self, batch: Sequence[Ticket], error: Exception) -> None:
        """After a failed batch: halves where memory ran out, singles otherwise, so that a bad job fails alone."""
        if is_fatal(error):
            raise error
        if len(batch) == 1:
            self.listener.failed(batch[0], explain(error))
            return
        size = 1
        if is_out_of_memory(error):
            size = len(batch) // 2
            self.narrowed[self.key(batch[0])] = size
            log.warning("out of memory with %d pictures of %s; %d at a time from now on", len(batch), batch[0].job.model, size)
        else:
            log.warning("a batch of %d failed and is run one by one: %s", len(batch), error)
        for start in range(0, len(batch), size):
            self.compute(batch[start : start + size])

    def stepper(self, batch: Sequence[Ticket]) -> Step:
        """What a long model calls between its steps: cancel, progress, and way for short jobs."""

        def step(index: int, total: int, previews: Previews | None = None) -> None:
            now = time.monotonic()
            if all(ticket.abandoned or ticket.deadline <= now for ticket in batch):
                raise Cancelled()
            shown = None if previews is None else functools.cache(previews)  # once for all who want to see
            for place, ticket in enumerate(batch):
                if ticket.progress and not ticket.abandoned:
                    own = None if shown is None else functools.partial(lambda place, shown: shown()[place : place + 1], place, shown)
                    self.listener.progressed(ticket, index, total, own)
            self.give_way()

        return step

    def give_way(self) -> None:
        """Computes the short jobs that wait now; those that come meanwhile wait for the next step."""
        with self.ready:
            count = self.queue.count
        while True:
            with self.ready:
                dead = self.queue.sweep(time.monotonic())
                short = [t for t in self.queue.waiting if t.turn[1] <= count and self.can_run(t) and not self.is_long(t.job)]
                batch = self.choose(short)
            self.bury(dead)
            if not batch:
                return
            self.compute(batch)

    def is_long(self, job: Job) -> bool:
        return job.long or self.shelf.infos[job.model].long


def is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in text
        or "can't allocate" in text
    )


def is_fatal(error: Exception) -> bool:
    """After a CUDA fault the process's context is lost: only a new process helps."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def explain(error: Exception) -> ServerError:
    """What a client is told: nothing that it should not know, and an id that finds the traceback in the log."""
    if isinstance(error, ServerError):
        return error
    if is_out_of_memory(error):
        return Busy("the device has no memory for this request", retry_after=5.0)
    mark = uuid.uuid4().hex[:12]
    log.error("failure %s", mark, exc_info=error)
    return ServerError(f"internal error {mark}")
