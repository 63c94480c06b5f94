"""The way from a web worker to what computes: nothing above this knows whether that is a process of this host or a cluster."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from api.conf import Config
from api.engine.codec import Encoding
from api.engine.wire import Picture, Progress, Started, Submit
from api.models.base import Info
from api.models.jobs import Job
from api.models.pictures import has_picture, slim
from api.tracing import CURRENT

DEATHS = 2  # of what computes a request, after which it is refused
MARGIN = 1.0  # seconds: what computes refuses by itself what is late; this is for what cannot

Watch = Callable[[Progress | Started], None]


class Transport(ABC):
    """``name`` is the same for transports that lead to the same place."""

    def __init__(self, config: Config, name: str, loading: Collection[str]) -> None:
        self.config, self.name = config, name
        self.numbers = itertools.count()
        self.infos: dict[str, Info] = {}  # what is known of the models; outlives those that told it
        self.failures: dict[str, str] = {}  # model id → why it cannot be served
        self.loading = set(loading)  # models that cannot be served yet
        self.trouble: str | None = None  # why nothing is reached, if it is known
        self.news = asyncio.Event()  # set, and replaced, when one of the four has changed

    @property
    @abstractmethod
    def linked(self) -> bool: ...

    @abstractmethod
    def open(self) -> None:
        """Begins to connect; returns at once."""

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def info(self, model_id: str) -> Info:
        """What the model is; waits until that is known. Raises ``NotReady`` if there is nothing to wait for."""

    @abstractmethod
    async def ask(self, submit: Submit, watch: Watch | None, patience: float) -> Picture:
        """Sends a request, as often as it takes, until it is answered. Raises ``Expired`` after ``patience`` seconds."""

    async def run(
        self,
        job: Job,
        *,
        client: str,
        encoding: Encoding,
        recipe: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        watch: Watch | None = None,
        previews: int = 0,
    ) -> Picture:
        """Computes one job. Raises what the model or the engine says of it; cancelling the caller cancels the job.

        ``deadline`` is in seconds of the monotonic clock; ``watch`` is told of the start and of each step,
        ``previews`` times with a small picture.
        """
        deadline = time.monotonic() + self.config.server.engine.deadline if deadline is None else deadline
        if has_picture(job) and (info := self.infos.get(job.model)) is not None:
            job = await asyncio.to_thread(slim, job, info)
        submit = Submit(
            id=next(self.numbers),
            job=job,  # type: ignore[arg-type]  # all kinds there are
            client=client,
            deadline=deadline,
            encoding=encoding,
            recipe=dict(recipe or {}),
            progress=watch is not None,
            previews=previews,
            trace=CURRENT.get(),
        )
        return await self.ask(submit, watch, deadline - time.monotonic() + MARGIN)

    def tell(self) -> None:
        """Wakes who waits for news."""
        self.news.set()
        self.news = asyncio.Event()


def build_transports(config: Config) -> dict[str, Transport]:
    """Each model's transport; models of one device share theirs. Raises ``ConfigError`` where a package is missing."""
    if config.cluster.engine == "ray":
        # Ray reads it when it is imported: how long this process outlives the head. Its own minute is shorter than many a restart.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    kind = "ray" if config.cluster.engine == "ray" else "client"
    transports: dict[str, Transport] = importlib.import_module(f"api.engine.{kind}").build(config)
    return transports
