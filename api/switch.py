"""The application that `python main.py` serves: on SIGHUP it makes way for a successor with the TOML as it now is.

New requests go to the successor from the moment when its models are loaded; the predecessor ends when it has answered its last. If the
TOML or a checkpoint cannot be used, everything stays as it was, and the log and `python -m api reload` say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from api import presence
from api.engine.readiness import load_all
from api.errors import ServerError
from api.server import RESTART, Server

log = logging.getLogger(__name__)


class Reign:
    """One application from its lifespan's beginning to its end."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.lifespan = app.router.lifespan_context(app)
        self.state: Mapping[str, Any] = {}
        self.busy = 0
        self.over, self.idle = asyncio.Event(), asyncio.Event()

    @property
    def server(self) -> Server:
        server: Server = self.state["server"]
        return server

    async def begin(self) -> None:
        self.state = await self.lifespan.__aenter__() or {}

    async def end(self) -> None:
        """Answers what it has, and ends. WebSockets and event streams are hung up on: their clients come back, to the successor."""
        self.over.set()
        self.server.hang_up()
        while self.busy:
            self.idle.clear()
            await self.idle.wait()
        await self.lifespan.__aexit__(None, None, None)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = dict(self.state)
        self.busy += 1
        try:
            if scope["type"] == "websocket":
                await self.app(scope, self.until_over(receive), send)
                if self.over.is_set():
                    with contextlib.suppress(RuntimeError, OSError):  # it may have been closed
                        await send({"type": "websocket.close", "code": RESTART})
            else:
                await self.app(scope, receive, send)
        finally:
            self.busy -= 1
            self.idle.set()

    def until_over(self, receive: Receive) -> Receive:
        async def either() -> Message:
            message, over = asyncio.ensure_future(receive()), asyncio.ensure_future(self.over.wait())
            try:
                await asyncio.wait((message, over), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "websocket.disconnect", "code": RESTART}
            finally:
                message.cancel()
                over.cancel()

        return either


class Switch:
    """An ASGI application. ``build`` reads the TOML and makes an application of it; it raises ``ConfigError``."""

    def __init__(self, app: FastAPI, build: Callable[[], FastAPI], folder: Path) -> None:
        self.first, self.build, self.folder = app, build, folder
        self.turn = asyncio.Lock()
        self.replacing: set[asyncio.Task[None]] = set()  # by successors
        self.ending: set[asyncio.Task[None]] = set()  # of predecessors
        self.current: Reign

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(scope["state"], receive, send)
        else:
            await self.current.serve(scope, receive, send)

    def turn_away(self, *request: Any) -> Any:
        """What the server asks of whoever reigns; see ``Door.turn_away``."""
        return self.current.state["turn_away"](*request)

    async def live(self, state: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        self.current = Reign(self.first)
        try:
            await self.current.begin()
        except BaseException:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            raise
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: self.spawn(self.replace(), self.replacing))
        presence.appear(self.folder, os.getpid())
        state["turn_away"] = self.turn_away
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in self.replacing:  # who is to leave does not wait for a successor's models
            task.cancel()
        async with self.turn:
            await self.current.end()
        await asyncio.gather(*self.replacing, *self.ending, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    def spawn(self, work: Any, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def replace(self) -> None:
        """Puts a successor in charge, or says why not."""
        async with self.turn:
            refused = None
            try:
                successor = await self.prepare()
            except ServerError as error:
                refused = str(error.detail)
            except Exception as error:
                log.exception("the successor failed")
                refused = f"{type(error).__name__}: {error}"
            if refused is None:
                predecessor, self.current = self.current, successor
                self.spawn(predecessor.end(), self.ending)
                log.info("the configuration was read again and is applied")
            else:
                log.error("the configuration was read again and cannot be used; the one before stays: %s", refused)
            self.current.server.telemetry.count("reloads", outcome="applied" if refused is None else "refused")
            presence.tell(self.folder, refused)

    async def prepare(self) -> Reign:
        """A successor whose models are loaded. Raises ``ConfigError``."""
        successor = Reign(await asyncio.to_thread(self.build))
        await successor.begin()
        try:
            serving = {engine.name for engine in self.current.server.engines.values()}
            await load_all(successor.server.engines.values(), serving)
        except BaseException:
            await successor.end()
            raise
        return successor
