"""How the cores of a CPU share the work: one batch in parts, each computed by one core alone.

Teams of OpenMP threads meet at the end of every kernel. The kernels of small networks take microseconds, and where an encoder, a web
worker or anything else has one of the cores, all wait for the thread that has to wait: measured, a picture in 2 to 40 ms instead of
in 3. Cores that work on pictures of their own meet once a batch. Teams remain for what is not parted: a lone picture of a large
network, and models that work in steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from api.models.base import Model, Step
from api.models.jobs import Job, Output

LARGE = 5_000_000  # parameters from which on the kernels of one picture are long enough for a team
AT_LEAST = 2  # jobs of a part: single ones waste what linear layers share


class Cores:
    """``count`` threads of one core each: the caller's and those of a pool."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.team = count  # threads of the caller's kernels
        self.pool = ThreadPoolExecutor(max(count - 1, 1), "core", lambda: torch.set_num_threads(1))

    def share(self, model: Model) -> Model:
        """The same model, its batches computed by all cores."""
        return Shared(model, self)

    def run(self, model: Model, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        """``model.run(jobs, step)``; a batch of jobs without steps in parts, beside each other. Call it on one thread only."""
        before = self.team  # a long model gives way to others between its steps
        parts = 1 if model.info.long or jobs[0].long else min(self.count, max(1, len(jobs) // AT_LEAST))
        self.use(self.count if parts == 1 and (model.info.long or model.info.parameters >= LARGE) else 1)
        bounds = [len(jobs) * i // parts for i in range(parts + 1)]
        others = [self.pool.submit(model.run, jobs[bounds[i] : bounds[i + 1]], step) for i in range(1, parts)]
        try:
            outputs = list(model.run(jobs[: bounds[1]], step))
        finally:
            failures = [other.exception() for other in others]  # waits for all: none may run beside the next batch
            self.use(before)
        for failure in failures:
            if failure is not None:
                raise failure
        return outputs + [output for other in others for output in other.result()]

    def use(self, threads: int) -> None:
        if threads != self.team:
            self.team = threads
            torch.set_num_threads(threads)


class Shared:
    """A model whose batches the cores share out among themselves."""

    def __init__(self, model: Model, cores: Cores) -> None:
        self.model, self.cores = model, cores
        self.info = model.info

    def prepare(self, job: Job) -> Job:
        return self.model.prepare(job)

    def key(self, job: Job) -> Hashable:
        return self.model.key(job)

    def run(self, jobs: Sequence[Job], step: Step) -> Sequence[Output]:
        return self.cores.run(self.model, jobs, step)
