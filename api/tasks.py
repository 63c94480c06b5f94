"""The worker inside every web worker: takes tasks from the store, has the engines compute them, and stores what came of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import logging
import os
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from api.engine.arrays import encode_array
from api.engine.codec import Encoding, decode_picture, encode
from api.engine.wire import Picture, Progress, Started, preview_steps
from api.errors import Busy, LeaseLost, ServerError
from api.history.origin import Entry, Origin
from api.models.jobs import Job, Pixels, Project
from api.schemas.tasks import read_task
from api.schemas.walks import Walk
from api.schemas.work import Work
from api.server import Server, Watching
from api.waiting import few_at_a_time

if TYPE_CHECKING:
    from api.history.recorder import Prepared
    from api.store.queue import Also, Claim
    from api.store.store import Store
    from api.store.transitions import Task

log = logging.getLogger(__name__)
PAUSE = 0.1
"""Seconds between progress events of one task: each is a durable write."""


@contextlib.asynccontextmanager
async def working(server: Server) -> AsyncIterator[None]:
    """While this is entered, the server's tasks are worked on and what has expired is deleted, from the store's opening on."""
    task = asyncio.create_task(serve(server), name="tasks")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def serve(server: Server) -> None:
    """A store that is there already may hold tasks that a predecessor left."""
    try:
        if await asyncio.to_thread(is_there, server):
            await patiently(server.store)
        await server.keeping.wait()
        store = await server.store()
        async with asyncio.TaskGroup() as group:
            group.create_task(store.tend())
            if server.config.tasks.parallel:
                group.create_task(Worker(server, store).run())
    except ServerError as error:
        log.error("tasks are not worked on: %s", error.detail)


def is_there(server: Server) -> bool:
    return server.config.store.url is not None or (server.config.server.data_dir / "store.sqlite").exists()


async def patiently(call: Callable[[], Awaitable[Any]], seconds: float = float("inf")) -> Any:
    """The call's result, called again while the database cannot be reached, for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except Busy:
            if time.monotonic() >= end:
                raise
            await asyncio.sleep(1.0)


class Worker:
    def __init__(self, server: Server, store: Store) -> None:
        self.server, self.store, self.conf = server, store, server.config.tasks
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.slots = asyncio.Semaphore(self.conf.parallel)

    async def run(self) -> None:
        """Works until cancelled; then gives back what it holds."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self.slots.acquire()
                claim = await self.take()
                group.create_task(self.perform(claim)).add_done_callback(lambda _: self.slots.release())

    async def take(self) -> Claim:
        """Waits for a task. Whatever goes wrong with that must not end this worker for good."""
        while True:
            try:
                claim: Claim = await patiently(lambda: self.store.queue.next(self.name, self.conf.lease))
                return claim
            except Exception:
                log.exception("no task could be taken; trying again")
                await asyncio.sleep(1.0)

    async def perform(self, claim: Claim) -> None:
        """Sees one task to its end, whatever that is."""
        try:
            with self.server.tracing.span("task") as span:
                if span is not None:
                    facts = {"task.id": claim.task.id, "model": claim.task.params["model"], "attempt": claim.task.attempts}
                    span.set_attributes(facts)
                await self.attempt(claim)
        except LeaseLost as error:
            log.info("task %s: %s", claim.task.id, error.detail)
        except asyncio.CancelledError:
            with contextlib.suppress(ServerError):
                await self.store.queue.release(claim)
            raise
        except Exception as error:
            reason = explain(claim, error)
            with contextlib.suppress(ServerError):  # then the lease runs out and another worker tries
                await patiently(lambda: self.store.queue.fail(claim, reason), self.conf.lease)

    async def attempt(self, claim: Claim) -> None:
        result, also = await self.store.queue.hold(claim, self.compute(claim))
        try:
            await patiently(lambda: self.store.queue.finish(claim, result, also=also), self.conf.lease)
        except LeaseLost:
            if also is None and not await self.is_told(claim, result):
                await self.store.blobs.delete(result["image"]["blob_id"])
            raise
        except Busy:  # not the task's fault: it is made again when its lease has run out
            raise LeaseLost("the database could not be reached to tell the result") from None

    async def is_told(self, claim: Claim, result: Mapping[str, Any]) -> bool:
        """Whether the task has ended with this very result: the database did as it was told, and the answer was lost."""
        task: Task = await patiently(lambda: self.store.tasks.get(claim.task.id), self.conf.lease)
        return task.result == result

    async def compute(self, claim: Claim) -> tuple[dict[str, Any], Also | None]:
        """Makes the picture and keeps it as a blob; what a finished task tells of it, and what its transaction is to do, too."""
        deadline = time.monotonic() + self.conf.deadline
        work = await self.prepare(claim, deadline)
        async with reporting(self.store, claim) as watch:
            watching = Watching(watch, claim.task.params.get("previews", 0))
            entry = await self.make(claim.task.owner, work, deadline, watching)
        picture = entry.picture
        found = {"parameters_used": {**claim.task.params, **told(picture)}, **found_style(work, picture)}
        if self.server.config.store.history:
            prepared = await self.remember(claim, entry, deadline)
            (made,) = prepared.made
            return {"image": {"blob_id": made.blob_id, "image_id": made.id, **found}}, prepared.insert
        expire = self.server.config.blobs.expire or None
        blob = await patiently(
            lambda: self.store.blobs.create(claim.task.owner, picture.mime_type, picture.data, seconds=expire), deadline - time.monotonic()
        )
        return {"image": {"blob_id": blob.id, **found}}, None

    async def remember(self, claim: Claim, entry: Entry, deadline: float) -> Prepared:
        """The picture's files, and the rows that are to be written with the task's end."""
        params = read_task(claim.task.params)
        entry = dataclasses.replace(entry, task_id=claim.task.id)
        origin = Origin(claim.task.owner, params.session, params.parents or (), list(params.blobs.values()))
        recorder = await self.server.recorder()
        prepared: Prepared = await patiently(lambda: recorder.prepare(origin, [entry]), deadline - time.monotonic())
        return prepared

    async def prepare(self, claim: Claim, deadline: float) -> Work | Walk:
        params = read_task(claim.task.params)
        model_id = claim.task.params["model"]
        info = await self.server.engine(model_id).info(model_id)  # however long it takes: the task has time
        pictures = await patiently(
            lambda: load_pictures(self.server, self.store, params.blobs, claim.task.owner), deadline - time.monotonic()
        )
        return params.work(info, pictures)

    async def make(self, owner: str, work: Work | Walk, deadline: float, watching: Watching) -> Entry:
        if isinstance(work, Work):
            picture = await self.run_job(owner, work, deadline, watching)
            return work.entry(await self.server.info(work.job.model), picture)
        frames = await self.run_walk(owner, work, deadline, watching)
        return work.entry(await asyncio.to_thread(work.animate, frames), frames[0].data)

    async def run_walk(self, owner: str, walk: Walk, deadline: float, watching: Watching) -> list[Picture]:
        """The frames, which the engine sees as pictures like any other; each is a step of the task."""
        total, done = len(walk.jobs), 0
        shown = preview_steps(total, watching.previews)

        async def run(job: Job) -> Picture:
            nonlocal done
            picture = await self.run_job(owner, Work(job, Encoding("png"), {}), deadline, None)
            done += 1
            step = Progress(0, done, total)
            watching.call(replace(step, preview=await asyncio.to_thread(preview_of, picture)) if done in shown else step)
            return picture

        return await few_at_a_time([functools.partial(run, job) for job in walk.jobs])

    async def run_job(self, owner: str, work: Work, deadline: float, watching: Watching | None) -> Picture:
        """Waits where the engine has no room: a stored task was promised."""
        while True:
            try:
                engine = self.server.engine(work.job.model)
                return await engine.run(
                    work.job,
                    client=owner,
                    encoding=work.encoding,
                    recipe=work.recipe,
                    deadline=deadline,
                    watch=watching.call if watching else None,
                    previews=watching.previews if watching else 0,
                )
            except Busy as error:
                wait = error.retry_after or 1.0
                if time.monotonic() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)


@contextlib.asynccontextmanager
async def reporting(store: Store, claim: Claim) -> AsyncIterator[Callable[[Progress | Started], None]]:
    """Takes the engine's news and stores the newest now and then; steps that come meanwhile are skipped."""
    latest: list[Progress] = []
    news, writing = asyncio.Event(), asyncio.Lock()

    def watch(message: Progress | Started) -> None:
        if isinstance(message, Progress):
            if latest and message.index < latest[0].index:
                message = replace(latest[0], preview=message.preview)  # previews take a while to encode
            elif message.preview is None and latest and latest[0].preview is not None and news.is_set():
                message = replace(message, preview=latest[0].preview)  # an untold preview is not lost to the next step
            latest[:] = [message]
            news.set()

    async def report() -> None:
        while True:
            await news.wait()
            news.clear()
            async with writing:
                with contextlib.suppress(ServerError):  # a lost lease is noticed elsewhere
                    await store.queue.report(claim, describe(latest[0]))
            await asyncio.sleep(PAUSE)

    task = asyncio.create_task(report())
    try:
        yield watch
        await writing.acquire()  # what is being written is written
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if news.is_set() and latest[0].preview is not None:
        with contextlib.suppress(ServerError):
            await store.queue.report(claim, describe(latest[0]))


def describe(progress: Progress) -> dict[str, Any]:
    step = {"step": progress.index, "steps": progress.total}
    if progress.preview is None:
        return step
    return step | {"preview": "data:image/jpeg;base64," + base64.b64encode(progress.preview).decode()}


async def load_pictures(server: Server, store: Store, blobs: Mapping[str, str], owner: str) -> dict[str, Pixels]:
    """The pixels of an owner's blobs. Raises ``NoSuchBlob``, ``Undecodable``, ``TooLarge``."""
    found = {}
    for name, blob_id in blobs.items():
        data = await store.blobs.read(await store.blobs.get(blob_id, owner))
        found[name] = await asyncio.to_thread(decode_picture, data, max_pixels=server.config.blobs.max_pixels)
    return found


def told(picture: Picture) -> dict[str, Any]:
    """What the engine settled."""
    label = {} if picture.label is None else {"label": picture.label}
    return {"seed": picture.seed, "width": picture.width, "height": picture.height, **label, **picture.extra}


def preview_of(picture: Picture) -> bytes:
    """A JPEG of a frame that is a PNG."""
    return encode(decode_picture(picture.data, max_pixels=picture.width * picture.height), Encoding("jpeg"))


def found_style(work: Work | Walk, picture: Picture) -> dict[str, str]:
    """What a projection is made for."""
    projected = isinstance(work, Work) and isinstance(work.job, Project)
    return {"style": encode_array(picture.styles)} if projected and picture.styles is not None else {}


def explain(claim: Claim, error: Exception) -> str:
    """Why a task failed, for its owner."""
    if isinstance(error, ServerError):
        return error.detail if isinstance(error.detail, str) else str(error.detail.get("msg", error.default))
    mark = uuid.uuid4().hex[:12]
    log.error("task %s: failure %s", claim.task.id, mark, exc_info=error)
    return f"internal error {mark}"
