"""The web worker's side of an engine: submits jobs, and sees to it that an engine is there.

An engine that dies is started again and gets the requests it held once more. A request that was being computed at two
deaths is refused, so that it cannot take the server down for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from api.conf import Config
from api.engine.begun import read_begun
from api.engine.launch import launch
from api.engine.socket import reach, socket_path
from api.engine.transport import DEATHS, Transport, Watch
from api.engine.wire import Bye, Cancel, Connection, Diary, Done, Failed, Hello, Picture, Progress, Return, Started, Submit, rebuild
from api.errors import BadInput, Expired, NotReady, Poisonous
from api.models.base import Info

log = logging.getLogger(__name__)
# A new engine imports torch before it listens to reason; until then looking often is cheap.
LOOK, LONGEST_WAIT = 0.02, 5.0


def build(config: Config) -> dict[str, Transport]:
    engines = {device: Engine(config, device) for device in config.devices()}
    return {model_id: engines[config.device(model_id)] for model_id in config.models}


class Link(Connection):
    """Sends together what is written in one turn of the event loop.

    Requests come in bursts, as each answered batch lets others in. Alone, each would wake the engine in the middle of a network, and the
    first would be computed without the others.
    """

    # An engine reads, and what was cut off would be sent again as a whole, to be cut off again: a few uploaded pictures are that large.
    MAX_UNSENT = 1 << 62

    def __init__(self, receive: Callable[[Connection, Any], None], lost: Callable[[Connection], None]) -> None:
        super().__init__(receive, lost)
        self.frames: list[bytes] = []

    def write(self, frames: bytes) -> None:
        if not self.frames:
            asyncio.get_running_loop().call_soon(self.flush)
        self.frames.append(frames)

    def flush(self) -> None:
        frames, self.frames = self.frames, []
        if frames:
            super().write(b"".join(frames))

    def close(self) -> None:
        self.flush()
        super().close()


@dataclass(eq=False, slots=True)
class Pending:
    """A request on its way: ``submit`` as it is to be sent, ``answer`` for who waits."""

    submit: Submit
    answer: asyncio.Future[Picture]
    watch: Watch | None = None
    link: Connection | None = None
    started: bool = False
    deaths: int = 0


def expire(entry: Pending) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(Expired())


class Engine(Transport):
    """The engine of one device, as a web worker sees it."""

    def __init__(self, config: Config, device: str) -> None:
        self.device, self.path = device, socket_path(config, device)
        super().__init__(config, str(self.path), config.devices()[device])
        self.pending: dict[int, Pending] = {}
        self.link: Connection | None = None  # where new requests go
        self.diaries: dict[Connection, Diary] = {}
        self.wanted = asyncio.Event()  # set when a link is needed
        self.keeper: asyncio.Task[None] | None = None

    @property
    def linked(self) -> bool:
        return self.link is not None

    def open(self) -> None:
        self.wanted.set()
        self.keeper = asyncio.create_task(self.keep())

    async def close(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        if self.link is not None:
            self.link.close()

    async def ask(self, submit: Submit, watch: Watch | None, patience: float) -> Picture:
        loop = asyncio.get_running_loop()
        entry = Pending(submit, loop.create_future(), watch)
        self.pending[submit.id] = entry
        timer = loop.call_later(patience, expire, entry)
        try:
            self.send(entry)
            return await entry.answer
        finally:
            timer.cancel()
            if self.pending.pop(submit.id, None) is not None and entry.link is not None:
                entry.link.send(Cancel(submit.id))

    def send(self, entry: Pending) -> None:
        """Sends an entry if its model is there; else it goes when the engine tells that it is."""
        entry.started = False
        if self.link is not None and entry.submit.job.model not in self.loading:
            entry.link = self.link
            try:
                self.link.send(entry.submit)
            except BadInput as error:  # its own fault alone, also where it is sent with all others
                fault = error
                self.settle(entry.submit.id, lambda answer: answer.set_exception(fault))

    async def info(self, model_id: str) -> Info:
        """What the model is; waits while it is loaded for the first time. Raises ``NotReady`` if it cannot be."""
        while model_id not in self.infos and model_id not in self.failures:
            await self.news.wait()
        if model_id not in self.infos:
            raise NotReady("the model cannot be loaded", retry_after=60.0)
        return self.infos[model_id]

    # What the engine says.

    def receive(self, link: Connection, message: Any) -> None:
        match message:
            case Done(id=number, picture=picture):
                self.settle(number, lambda answer: answer.set_result(picture))
            case Failed(id=number):
                self.settle(number, lambda answer: answer.set_exception(rebuild(message)))
            case Started(ids=ids):
                for number in ids:
                    if entry := self.pending.get(number):
                        entry.started = True
                        self.notify(entry, message)
            case Progress(id=number):
                if entry := self.pending.get(number):
                    self.notify(entry, message)
            case Return(id=number):
                if entry := self.pending.get(number):
                    entry.link = None
                    self.send(entry)
            case Hello():
                self.welcome(link, message)
            case Diary():
                self.diaries[link] = message
            case Bye():
                self.leave(link)

    def settle(self, number: int, how: Callable[[asyncio.Future[Picture]], None]) -> None:
        entry = self.pending.pop(number, None)
        if entry is not None and not entry.answer.done():
            how(entry.answer)

    def notify(self, entry: Pending, message: Progress | Started) -> None:
        if entry.watch is not None:
            entry.watch(message)

    def welcome(self, link: Connection, hello: Hello) -> None:
        self.link, self.trouble = link, None
        self.infos |= {info.id: info for info in hello.infos}
        self.failures, self.loading = hello.failures, set(hello.loading)
        self.tell()
        self.resend()

    def resend(self) -> None:
        for entry in list(self.pending.values()):
            if entry.link is None:
                self.send(entry)

    def leave(self, link: Connection) -> None:
        """``link`` drains or is gone: what comes now needs another."""
        if self.link is link:
            self.link = None
            self.loading = set(self.config.devices()[self.device])
            self.wanted.set()

    def lost(self, link: Connection) -> None:
        self.leave(link)
        diary = self.diaries.pop(link, None)
        held = [entry for entry in self.pending.values() if entry.link is link]
        begun = read_begun(Path(diary.path), diary.client) if diary and held else set()
        for entry in held:
            entry.link = None
            if entry.started or entry.submit.id in begun:
                self.bury(entry)
        if self.link is not None:
            self.resend()

    def bury(self, entry: Pending) -> None:
        """The entry was being computed when its engine died: it is tried once more, by itself."""
        entry.deaths += 1
        entry.submit = replace(entry.submit, alone=True)
        if entry.deaths >= DEATHS:
            log.error("a request for %s was being computed at %d deaths of the engine and is refused", entry.submit.job.model, entry.deaths)
            self.settle(entry.submit.id, lambda answer: answer.set_exception(Poisonous()))

    # Seeing to it that there is an engine.

    async def keep(self) -> None:
        wait = 0.1
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            if await self.connect():
                wait = 0.1
                continue
            self.wanted.set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def connect(self) -> bool:
        """Makes a link; starts an engine if there is none. The engine's first word makes it the one in use."""
        link = await self.dial() or await self.launch()
        if link is None:
            return False
        try:
            while link.transport is not None:
                if self.link is link:
                    return True
                await asyncio.sleep(LOOK)
        except asyncio.CancelledError:  # closed before the engine has said a word
            link.close()
            raise
        return False

    async def launch(self) -> Connection | None:
        """Starts an engine process and dials until it listens.

        If another worker was quicker, this one's leaves at once by itself: a kernel lock decides between them.
        """
        try:
            child = launch(self.config, self.device)
        except OSError as error:
            self.trouble = f"the engine for {self.device} cannot be started: {error.strerror}"
            log.error(self.trouble)
            return None
        while (link := await self.dial()) is None and child.returncode is None:
            await asyncio.sleep(LOOK)
        if link is None and child.returncode:
            self.trouble = f"the engine for {self.device} ended with status {child.returncode}"
            log.error(self.trouble)
        return link

    async def dial(self) -> Connection | None:
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(lambda: Link(self.receive, self.lost), reach(self.path))
        except OSError:
            return None
        return link
