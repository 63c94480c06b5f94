"""The lane: one queue that keeps one device busy.

A batch is the job whose turn it is and waiting jobs with its key. The lane does not wait for company while the device is idle, but for a
moment after a long batch, whose clients are likely to come back together. It knows neither sockets nor pictures' formats: a ``Listener``
takes what comes out.

A GPU computes one batch at a time. On a CPU each core computes batches of its own, which begin and end when they like: teams of OpenMP
threads meet at the end of every kernel, and where an encoder or a web worker has one of the cores, all wait for the thread that has to
wait (measured: a picture in 2 to 40 ms instead of in 3). Some batches have the whole device to themselves: those of long jobs, and a lone
picture when nobody else is there, of a small network when nobody else has been there for a while. A team gets it done sooner and makes
fewer pictures a second.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from api.engine.shelf import Shelf
from api.engine.turns import Queue, Ticket
from api.errors import Busy, Cancelled, Expired, NotReady, ServerError
from api.models.base import Previews, Step
from api.models.jobs import Job, Output

log = logging.getLogger(__name__)
WORTH = 0.05  # of a long batch's time may be waited for the next one to be larger
LARGE = 5_000_000  # parameters from which on a team of cores makes nearly as many pictures a second as its cores would alone
CALM = 0.25  # seconds without two at once, after which one is likely to stay alone
AT_LEAST = 2  # jobs of a core's batch, if there are so many: single ones waste what linear layers share
NOBODY = -1  # no turn is as early


class Listener(Protocol):
    """Told what becomes of tickets, on the lane's threads and on those that submit; each ticket ends in ``finished`` or ``failed``, once.

    ``previews`` gives the ticket's own preview alone, ``seconds`` is what the batch took.
    """

    def started(self, batch: Sequence[Ticket]) -> None: ...
    def progressed(self, ticket: Ticket, index: int, total: int, previews: Previews | None) -> None: ...
    def finished(self, batch: Sequence[Ticket], outputs: Sequence[Output], seconds: float) -> None: ...
    def failed(self, ticket: Ticket, error: ServerError) -> None: ...


class Company:
    """How many long jobs are likely to come together after a batch that took ``seconds``, and until when that is worth waiting for.

    Eight clients that each ask again when they are answered would else be served as one and seven in turn.
    """

    def __init__(self, size: int = 0, seconds: float = 0.0) -> None:
        self.size, self.end = size, time.monotonic() + seconds * WORTH

    def patience(self) -> float:
        return max(0.0, self.end - time.monotonic())


class Lane:
    """Serves the models of ``shelf`` on one device: ``submit`` and ``cancel`` from any thread, ``run`` on ``cores`` threads of its own.

    ``use`` sets how many cores the kernels of the calling thread take, of which ``teams`` tells how many are of use to a lone picture of a
    model; one, if it does not. A job whose model is parked waits until that is loaded; with ``patient`` false it is refused, and the model
    loaded for the next one.
    """

    def __init__(
        self,
        shelf: Shelf,
        listener: Listener,
        *,
        max_batch: Callable[[str], int],
        max_queue: int,
        patient: bool = True,
        cores: int = 1,
        use: Callable[[int], None] = lambda cores: None,
    ) -> None:
        self.shelf, self.listener = shelf, listener
        self.max_batch, self.max_queue, self.patient = max_batch, max_queue, patient
        self.cores, self.use = cores, use
        self.teams: dict[str, int] = {}
        self.queue = Queue()
        self.wanted: str | None = None  # a parked model that somebody was refused for
        self.company = Company()
        self.guard = threading.RLock()
        self.first, self.others = threading.Condition(self.guard), threading.Condition(self.guard)  # threads that wait for something to do
        self.resting = False  # the first one waits and has not been called yet
        self.closing = False
        self.at_work = 0  # threads
        self.crowded = -CALM  # when somebody last came and was not the only one
        self.owner: int | None = None  # the thread that has the whole device
        self.pause = NOBODY  # the last of the turns that short jobs may have beside it
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
        with self.guard:
            # Whom nobody waits for any more takes no place from those who come.
            dead = self.queue.sweep(ticket.arrived) if len(self.queue.waiting) >= self.max_queue else []
            if has_room := not self.closing and len(self.queue.waiting) < self.max_queue:
                if self.at_work or self.queue.waiting:
                    self.crowded = ticket.arrived
                self.queue.add(ticket)
                self.call()
        self.bury(dead)
        if not has_room:
            raise Busy()

    def call(self) -> None:
        """Wakes a thread for a ticket that has come: the first one if it can be, since it alone can begin everything."""
        if self.resting:
            self.resting = False
            self.first.notify()
        else:
            self.others.notify()

    def call_all(self) -> None:
        self.resting = False
        self.first.notify_all()
        self.others.notify_all()

    def want(self, model_id: str) -> None:
        """Has a parked model loaded. Raises ``NotReady`` with the time that it took last."""
        with self.guard:
            self.wanted = model_id
            self.call_all()
        raise NotReady(retry_after=self.shelf.seconds[model_id] + 1.0)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for the ticket any more: it does not start, and a long one stops at its next step."""
        ticket.abandoned = True

    def close(self) -> None:
        """Lets ``run`` return when the queue is empty."""
        with self.guard:
            self.closing = True
            self.call_all()

    def run(self, first: bool = True) -> None:
        """Computes until ``close``. What has the whole device is always computed by the one ``first`` thread.

        A second thread with a team of its own would make OpenMP count more threads than cores and put them to sleep at each kernel's end:
        measured, a diffusion picture in 350 ms instead of in 130.
        """
        self.use(1)
        while batch := self.next_batch(first):
            try:
                self.use(self.width(batch[0].job))
                self.compute(batch)
            finally:
                self.use(1)  # before the others go on: part of this setting is the process's
                self.release()

    def next_batch(self, first: bool) -> list[Ticket]:
        """Waits for work; nothing means that the lane is closed and empty."""
        while True:
            with self.guard:
                self.rest(first)
                if not self.is_open(first):  # another thread was quicker
                    continue
                dead = self.queue.sweep(time.monotonic())
                still = self.is_open(first)  # another may be the next in turn now
                absent = self.absent() if still else None
                batch = self.choose() if still and not absent else []
                if absent or batch:
                    self.at_work += 1
                    if absent or (first and self.needs_device(batch)):
                        self.owner = threading.get_ident()
                done = self.closing and not self.queue.waiting
            self.bury(dead)
            if absent:
                try:
                    self.fetch(absent)
                finally:
                    self.release()
            elif batch or done:
                return batch

    def rest(self, first: bool) -> None:
        """Waits for something to begin, and for its company if that is worth it."""
        own = self.first if first else self.others

        def note(done: bool) -> bool:
            if first:
                self.resting = not done
            return done

        own.wait_for(lambda: note(self.is_open(first)))
        own.wait_for(lambda: note(self.is_complete()), self.company.patience())
        note(True)

    def release(self) -> None:
        """The calling thread is done with what it began."""
        with self.guard:
            self.at_work -= 1
            if self.owner == threading.get_ident():
                self.owner = None
            self.call_all()

    def width(self, job: Job) -> int:
        """How many cores the calling thread is to compute a batch with that begins with ``job``."""
        if self.owner != threading.get_ident():
            return 1
        return self.cores if self.is_long(job) else self.teams.get(job.model, 1)

    def candidates(self) -> list[Ticket]:
        """What may be begun now, the next in turn first."""
        if self.owner is None:
            return self.queue.waiting
        return [t for t in self.queue.waiting if t.turn[1] <= self.pause and not self.claims_device(t)]

    def is_open(self, first: bool) -> bool:
        """Whether there is something to begin for a thread, or nothing ever again."""
        if self.owner is not None:
            return bool(self.candidates())
        if self.wanted or (self.queue.waiting and self.claims_device(self.queue.waiting[0])):
            return first and self.at_work == 0
        if self.at_work == 0 and len(self.queue.waiting) == 1 and self.is_for_team(self.queue.waiting[0]):
            return first
        return self.closing or bool(self.queue.waiting)

    def claims_device(self, ticket: Ticket) -> bool:
        """Whether a ticket cannot be computed, or its model loaded, while others are at work."""
        return ticket.alone or not self.can_run(ticket) or self.is_long(ticket.job)

    def needs_device(self, batch: Sequence[Ticket]) -> bool:
        """Whether a batch that is to be begun has the device to itself."""
        if self.claims_device(batch[0]):
            return True
        return len(batch) == 1 and self.at_work == 1 and not self.queue.waiting and self.is_for_team(batch[0])

    def is_for_team(self, ticket: Ticket) -> bool:
        """Whether a lone picture that can be computed is sooner done by several cores, at nobody's cost."""
        if self.teams.get(ticket.job.model, 1) == 1:
            return False
        large = self.shelf.infos[ticket.job.model].parameters >= LARGE
        return large or ticket.arrived - self.crowded >= CALM

    def is_complete(self) -> bool:
        """Whether there is nothing to be gained by waiting: all that may come are there, or somebody is in a hurry."""
        if self.closing or self.wanted or len(self.queue.waiting) >= self.company.size:
            return True
        return any(not self.can_run(ticket) or not self.is_long(ticket.job) for ticket in self.queue.waiting)

    def absent(self) -> str | None:
        """The model that has to be loaded before anything else is done."""
        if self.owner is not None:
            return None
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
        with self.guard:
            waiting = [ticket for ticket in self.queue.waiting if ticket.job.model == model_id and (model is None or not ticket.prepared)]
        for ticket in waiting:
            try:
                if model is None:
                    raise NotReady("the model cannot be loaded", retry_after=60.0)
                ticket.job, ticket.prepared = model.prepare(ticket.job), True
            except Exception as error:
                with self.guard:
                    self.queue.take([ticket])
                self.listener.failed(ticket, explain(error))

    def choose(self) -> list[Ticket]:
        """The batch whose turn it is, taken out of the queue; several cores share out what waits."""
        candidates = self.candidates()
        if not candidates or (self.owner is None and self.at_work and self.claims_device(candidates[0])):
            return []
        head = candidates[0]
        batch = [head]
        if not head.alone:
            key = self.key(head)
            fellows = [t for t in candidates if self.can_run(t) and not t.alone and self.key(t) == key]
            batch = fellows[: min(self.room(head.job, len(fellows)), self.narrowed.get(key, 1 << 30))]
        self.queue.take(batch)
        return batch

    def room(self, job: Job, count: int) -> int:
        """The size of a batch out of ``count`` jobs: all cores together compute no more than ``max_batch`` pictures at a time."""
        most = self.max_batch(job.model)
        if self.cores == 1 or self.is_long(job):
            return most
        idle = max(1, self.cores - self.at_work + (self.owner is not None))  # who has the device helps with the short jobs too
        return min(max(1, most // self.cores), max(AT_LEAST, -(-count // idle)))

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
        begun = time.monotonic()
        try:
            outputs = self.attempt(batch)
        except Cancelled:
            self.bury(batch)
        except Exception as error:
            self.recover(batch, error)
        else:
            self.listener.finished(batch, outputs, time.monotonic() - begun)

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
            if self.is_long(batch[0].job):
                self.give_way()

        return step

    def give_way(self) -> None:
        """Lets all cores compute the short jobs that wait now; those that come meanwhile wait for the next step."""
        with self.guard:
            dead = self.queue.sweep(time.monotonic())
            self.pause = self.queue.count
            busy = bool(self.candidates())
        self.bury(dead)
        if busy:
            self.use(1)
            with self.guard:
                self.others.notify_all()
            while batch := self.next_short():
                self.compute(batch)
            with self.guard:
                self.first.wait_for(lambda: self.at_work == 1)
            self.use(self.cores)
        self.pause = NOBODY

    def next_short(self) -> list[Ticket]:
        with self.guard:
            dead = self.queue.sweep(time.monotonic())
            batch = self.choose()
        self.bury(dead)
        return batch

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
