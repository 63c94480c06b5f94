"""Live editing: a WebSocket that takes changes as fast as a mouse moves and answers pictures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from api.engine.codec import Encoding
from api.errors import BadInput, ServerError
from api.limits.client import identify
from api.models.base import Info
from api.models.jobs import Edit
from api.routes.parts import identify_owner, own_format, read_session
from api.schemas.editing import Change, edit_recipe
from api.schemas.requests import SEEDS
from api.server import Caller, Server

router = APIRouter(tags=["editing"])
LONGEST = 1 << 20
"""Characters of a change."""


@router.websocket("/{model_id}/live")
async def live(websocket: WebSocket, model_id: str) -> None:
    """Opening costs one request of the quota; each picture passes the other limits, and costs nothing of it."""
    server: Server = websocket.state.server
    peer = websocket.client.host if websocket.client else None
    try:
        user = identify_owner(websocket) if server.config.auth.enabled else None
        session = read_session(websocket.query_params.get("session"), websocket.cookies)
        caller = Caller(identify(peer, websocket.headers.raw, server.config.server.http), for_ever, user, session=session)
        info = await server.info(model_id)
        if Edit.__name__ not in info.kinds:
            raise BadInput(f"the model {model_id!r} has no styles to edit")
        async with server.limits.admit(caller.address):
            pass
    except ServerError as error:
        await websocket.close(1008, str(error.detail)[:120])  # before accepting: the client sees 403
        return
    await websocket.accept()
    viewer = Viewer(websocket, server, info, caller)
    async with asyncio.TaskGroup() as group:
        drawing = group.create_task(viewer.draw())
        await viewer.listen()
        drawing.cancel()


async def for_ever() -> None:
    await asyncio.Event().wait()


class Viewer:
    """One connection: what it wants to see, of which only the latest wish waits."""

    def __init__(self, websocket: WebSocket, server: Server, info: Info, caller: Caller) -> None:
        self.websocket, self.server, self.info, self.caller = websocket, server, info, caller
        self.known: dict[str, Any] = {}
        self.seed = secrets.randbelow(SEEDS)
        self.wish: tuple[int, Edit, Encoding, bool] | None = None
        self.news = asyncio.Event()
        self.speaking = asyncio.Lock()

    async def listen(self) -> None:
        """Takes changes until the client leaves; ``number`` counts them from 1."""
        number = 0
        while (message := await self.websocket.receive())["type"] != "websocket.disconnect":
            number += 1
            try:
                self.take(number, message.get("text") or "")
            except ValidationError as error:
                await self.say(
                    {"change": number, "detail": [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]}
                )
            except ServerError as error:
                await self.say({"change": number, "detail": error.detail})

    def take(self, number: int, text: str) -> None:
        """The change takes the place of one that waits. What was wrong with it is raised, and leaves all as it was."""
        said = parse(text)
        keep = said.pop("keep", False) is True  # of this picture alone
        known = Change.merge(self.known, said)
        change = Change.model_validate({"seed": self.seed} | known)
        self.wish = number, change.job(self.info), Encoding(change.format or own_format(self.info)), keep
        self.known = known
        self.news.set()

    async def draw(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            if self.wish is not None:
                wish, self.wish = self.wish, None
                await self.show(*wish)

    async def show(self, number: int, job: Edit, encoding: Encoding, keep: bool) -> None:
        try:
            with self.server.tracing.span("change"):
                result = await self.server.compute(self.caller, [job], encoding, [edit_recipe(self.info, job)], free=True, keep=keep)
        except ServerError as error:
            await self.say({"change": number, "detail": error.detail, "retry_after": error.retry_after})
            return
        (picture,) = result.pictures
        told = {"change": number, "seed": picture.seed, "label": picture.label, "mimeType": picture.mime_type}
        await self.say(told | ({"image_id": result.ids[0]} if result.ids else {}), picture.data)

    async def say(self, news: dict[str, Any], picture: bytes | None = None) -> None:
        """A picture follows directly on the text that tells of it."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # who has left is seen by ``listen``
            async with self.speaking:
                await self.websocket.send_text(json.dumps(news))
                if picture is not None:
                    await self.websocket.send_bytes(picture)


def parse(text: str) -> dict[str, Any]:
    """Raises ``BadInput``."""
    if len(text) > LONGEST:
        raise BadInput(f"a change of {len(text)} characters; {LONGEST} at most")
    try:
        change = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("a change that is not JSON") from None
    if not isinstance(change, dict):
        raise BadInput("a change that is not a JSON object")
    return change
