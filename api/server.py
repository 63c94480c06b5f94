"""The server: all that an application opens, and the one way that every computing request takes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from api.access import Book
from api.auth import Environment, Tokens
from api.cache import Cache
from api.conf import Config
from api.engine.codec import Encoding
from api.engine.transport import Transport, Watch, build_transports
from api.engine.wire import Picture
from api.errors import BadInput, Blocked, Busy, Cancelled, ConfigError, NoAddress, NoSuchModel, NotFound, NotReady, RateLimited
from api.history.origin import Entry, Origin, entry_of
from api.limits import Limits
from api.models.base import Info
from api.models.jobs import Diffuse, Generate, Job
from api.telemetry import Telemetry
from api.tracing import Tracing, open_tracing
from api.waiting import Line, few_at_a_time, until_gone

if TYPE_CHECKING:  # it brings SQLAlchemy along, which a server that keeps nothing need not load
    from api.history.recorder import Recorder
    from api.store.feed import Stream
    from api.store.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")
EXAMPLE_SEED = 1
RESTART = 1012  # the WebSocket close code "service restart"
EVERYBODY = "everybody"
"""The owner where nobody is asked who they are."""
ATTEMPTS = 10
"""Workers that a task may cost: what it does to an engine, which is more likely its own fault, is counted by the engine's client."""


@dataclass(frozen=True, slots=True)
class Watching:
    """``call`` is told of each step of a request's pictures, ``previews`` times with a small picture."""

    call: Watch
    previews: int = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ``address`` for the limits, ``name`` for fairness in the lane, ``gone`` returns when the client has left, of which
    ``line`` tells sooner, where there is one.

    ``user`` is whom tasks and blobs belong to, where the server asks who somebody is; ``watching`` wants to see the steps. ``session``,
    ``parents`` and ``blobs`` are for the history, as in ``Origin``.
    """

    address: str | None
    gone: Callable[[], Awaitable[None]]
    user: str | None = None
    watching: Watching | None = None
    session: str | None = None
    parents: Sequence[str] = ()
    blobs: Sequence[str] = ()
    line: Line | None = None

    @property
    def name(self) -> str:
        return self.user or self.address or ""

    @property
    def origin(self) -> Origin:
        """What the history notes of who asked."""
        return Origin(self.user or EVERYBODY, self.session, self.parents, self.blobs)


@dataclass(frozen=True, slots=True)
class Answer:
    """Pictures in the order of the jobs, the headers that the limits and the history add, and the pictures' ids if they are kept."""

    pictures: Sequence[Picture]
    headers: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str] = ()


class Server:
    """Owns engines, limits and telemetry. ``open`` and ``close`` belong to the application's lifespan."""

    def __init__(
        self, config: Config, engines: Mapping[str, Transport], limits: Limits, telemetry: Telemetry, tokens: Tokens, tracing: Tracing
    ) -> None:
        self.config, self.limits, self.telemetry, self.tokens = config, limits, telemetry, tokens
        self.engines, self.tracing = engines, tracing  # by model
        self.book = Book(telemetry)
        self.examples: dict[str, tuple[str, Picture]] = {}
        self.cache: Cache | None = None
        self.kept: Store | None = None
        self.keeper: Recorder | None = None
        self.keeping = asyncio.Event()  # set when the store is open
        self.opening = asyncio.Lock()
        self.listening: set[Stream[Any]] = set()  # event streams, which have no end of their own
        self.leaving = False

    @classmethod
    async def open(cls, config: Config, tokens: Tokens | None = None) -> Self:
        """Opens everything; the engines become ready by themselves."""
        tokens = tokens or Tokens(config.auth, Environment(), config.server.tmp_dir)
        tokens.open()
        telemetry = Telemetry(config.server.tmp_dir, "web")
        tracing = open_tracing(config.trace, "web")
        engines = build_transports(config)  # which may refuse the TOML: before anything is opened that would have to be closed
        limits = await Limits.open(config.server.limit, config.server.tmp_dir, config.cluster.redis)
        telemetry.start()
        for engine in set(engines.values()):
            engine.open()
        server = cls(config, engines, limits, telemetry, tokens, tracing)
        # What the history keeps has to be made for it.
        if config.cluster.redis is not None and config.cluster.cache and not config.store.history:
            server.cache = Cache(config.cluster.redis, config.cluster.cache)
        return server

    async def store(self) -> Store:
        """What may not be lost; opened when it is first asked for, and again while it cannot be. Raises ``Busy``."""
        async with self.opening:
            if self.kept is None:
                try:
                    self.kept = await open_store(self.config)
                except ConfigError as error:  # no client's fault, and nothing for its eyes; a database that is away may come
                    log.error("the store cannot be opened: %s", error.detail)
                    raise Busy("the store is unavailable", retry_after=5.0) from error
                self.keeping.set()
        return self.kept

    async def recorder(self) -> Recorder:
        """What keeps pictures. Raises ``Busy``."""
        if self.keeper is None:
            store = await self.store()
            module = await asyncio.to_thread(importlib.import_module, "api.history.recorder")
            self.keeper = module.Recorder(store)
        return self.keeper

    async def check_origin(self, origin: Origin) -> None:
        """Whether a picture of such an origin can be kept, if pictures are. Raises ``BadInput``, ``NoSuchImage``."""
        if self.config.store.history:
            await (await self.recorder()).check(origin)

    async def record(self, origin: Origin, entries: Iterable[Entry]) -> tuple[Sequence[str], dict[str, str]]:
        """Keeps pictures, if pictures are kept: their ids, and the header that tells them. Raises ``Busy``."""
        if not self.config.store.history:
            return (), {}
        ids = await (await self.recorder()).record(origin, list(entries))
        return ids, {"X-Image-Id": ", ".join(ids)}

    def hang_up(self) -> None:
        """Ends the event streams, also those that begin later; their clients come back, to a successor."""
        self.leaving = True
        for stream in self.listening:
            stream.end()

    @contextlib.contextmanager
    def following(self, stream: Stream[Any]) -> Iterator[None]:
        """Within this, the stream is one that the server ends when it leaves."""
        self.listening.add(stream)
        if self.leaving:
            stream.end()
        try:
            yield
        finally:
            self.listening.discard(stream)

    async def close(self) -> None:
        if self.kept is not None:
            await self.kept.close()
        await asyncio.gather(*(engine.close() for engine in set(self.engines.values())))
        await self.limits.close()
        self.book.write()
        if self.cache is not None:
            await self.cache.close()
        await asyncio.to_thread(self.telemetry.close)
        await asyncio.to_thread(self.tracing.close)

    def engine(self, model_id: str) -> Transport:
        """The engine that serves a model. Raises ``NoSuchModel``."""
        if model_id not in self.engines:
            raise NoSuchModel(model_id)
        return self.engines[model_id]

    async def info(self, model_id: str) -> Info:
        """What a model is; waits while it loads, as long as a request may take. Raises ``NoSuchModel``, ``NotReady``."""
        engine = self.engine(model_id)
        if (known := engine.infos.get(model_id)) is not None:
            return known
        try:
            async with asyncio.timeout(self.config.server.engine.deadline):
                return await engine.info(model_id)
        except TimeoutError:
            raise NotReady(retry_after=5.0) from None

    def serving(self) -> list[str]:
        """The models that can be loaded, as far as is known."""
        return [model_id for model_id in self.config.models if model_id not in self.engine(model_id).failures]

    async def compute(
        self,
        caller: Caller,
        jobs: Sequence[Job],
        encoding: Encoding,
        recipes: Sequence[Mapping[str, Any]],
        *,
        free: bool = False,
        keep: bool = True,
    ) -> Answer:
        """Computes a request's jobs under the limits, out of the quota unless ``free``. The client's leaving cancels them.

        What it makes goes into the history, if there is one, unless ``keep`` is false.
        """
        if keep:
            await self.check_origin(caller.origin)
        try:
            return await until_gone(caller.line, caller.gone, self.admitted(caller, jobs, encoding, recipes, free, keep))
        except (Blocked, Busy, NoAddress, RateLimited) as error:
            self.telemetry.count("refusals", error=error.code)
            raise

    async def recall(self, caller: Caller, name: str, job: Job, encoding: Encoding, recipe: Mapping[str, Any]) -> Answer:
        """The picture that ``name`` stands for on all hosts: what one of them has made, at no cost to the client, or computed."""
        if self.cache is not None and (known := await self.cache.find(name)) is not None:
            self.telemetry.count("recalled", model=job.model)
            return Answer([known])
        answer = await self.compute(caller, [job], encoding, [recipe])
        if self.cache is not None:
            await self.cache.keep(name, answer.pictures[0])
        return answer

    async def admitted(
        self, caller: Caller, jobs: Sequence[Job], encoding: Encoding, recipes: Sequence[Mapping[str, Any]], free: bool, keep: bool
    ) -> Answer:
        begun = time.monotonic()
        async with self.limits.admit(caller.address, functools.partial(self.tracing.span, "limits")) as admission:
            if free:
                await admission.refund()
            try:
                pictures = await self.run(caller.name, jobs, encoding, recipes, caller.watching)
            except (BadInput, NotFound, Cancelled):
                await admission.refund()
                raise
            ids, header = await self.record(caller.origin, self.entries(jobs, encoding, recipes, pictures)) if keep else ((), {})
            if (rest := begun + self.config.server.limit.min_delay - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            return Answer(pictures, admission.headers() | header, ids)

    def entries(
        self, jobs: Sequence[Job], encoding: Encoding, recipes: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]
    ) -> Iterator[Entry]:
        """What the history keeps of computed jobs."""
        for job, recipe, picture in zip(jobs, recipes, pictures, strict=True):
            yield entry_of(self.engine(job.model).infos[job.model], job, encoding, recipe, picture)

    async def run(
        self,
        client: str,
        jobs: Sequence[Job],
        encoding: Encoding,
        recipes: Sequence[Mapping[str, Any]],
        watching: Watching | None = None,
    ) -> list[Picture]:
        """The engine's pictures of the jobs, without limits. If one fails, the others are cancelled."""
        watch, previews = (watching.call, watching.previews) if watching else (None, 0)
        deadline = time.monotonic() + self.config.server.engine.deadline

        async def run(job: Job, recipe: Mapping[str, Any]) -> Picture:
            engine = self.engine(job.model)
            return await engine.run(job, client=client, encoding=encoding, recipe=recipe, deadline=deadline, watch=watch, previews=previews)

        if len(jobs) == 1:
            return [await run(jobs[0], recipes[0])]
        return await few_at_a_time([functools.partial(run, job, recipe) for job, recipe in zip(jobs, recipes, strict=True)])

    async def example(self, model_id: str) -> tuple[Info, Picture]:
        """A model with a typical picture of it, made once."""
        info = await self.info(model_id)
        known = self.examples.get(model_id)
        if known is None or known[0] != info.digest:
            job = example_job(info)
            encoding = Encoding("jpeg" if info.lossy else "png")
            picture = await self.engine(model_id).run(job, client="", encoding=encoding)
            known = self.examples[model_id] = (info.digest, picture)
        return info, known[1]

    def states(self) -> dict[str, str]:
        """Each model's readiness: "ready", "loading", or why it cannot be served."""
        found = {}
        for model_id in self.config.models:
            engine = self.engine(model_id)
            if model_id in engine.failures:
                found[model_id] = f"failed: {engine.failures[model_id]}"
            elif model_id in engine.loading or not engine.linked:
                found[model_id] = engine.trouble or "loading"
            else:
                found[model_id] = "ready"
        return found


def example_job(info: Info) -> Job:
    """A typical picture of the model, cheap where models take their time."""
    if "Generate" in info.kinds:
        return Generate(model=info.id, seed=EXAMPLE_SEED, psi=0.7)
    grey, white = np.full((info.height, info.width, 3), 128, np.uint8), np.full((info.height, info.width), 255, np.uint8)
    mode = info.extra["modes"][0]
    image, mask = None if mode == "txt2img" else grey, white if mode == "inpaint" else None
    steps = min(8, info.extra["steps"])
    return Diffuse(model=info.id, seed=EXAMPLE_SEED, prompt=info.extra["example"], steps=steps, image=image, mask=mask)


async def open_store(config: Config) -> Store:
    module = await asyncio.to_thread(importlib.import_module, "api.store.store")
    conf = config.tasks
    options = module.Options(max_attempts=ATTEMPTS, max_pending=conf.max_pending, keep=conf.keep or None, undo=config.store.undo)
    bell = None
    if config.cluster.redis is not None:
        bell = (await asyncio.to_thread(importlib.import_module, "api.store.pubsub")).RedisBell(config.cluster.redis)
    buckets = importlib.import_module("api.store.buckets")
    bucket = await asyncio.to_thread(buckets.open_bucket, config.blobs.url, config.blobs.options, config.server.data_dir)
    store: Store = await module.Store.open(config.server.data_dir, config.store.url, bucket=bucket, bell=bell, options=options)
    return store
