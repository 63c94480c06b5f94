"""Refusing in a hurry: while the queue is known to be full, requests are sent away before anything is done for them.

To route a request, to check it and to ask the limits costs a web worker about as much as serving it. Where three times as much is asked as
can be computed, that time would be missing where pictures are made.
"""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Busy
from api.schemas.openai import envelope, is_openai

MOST = 1024
"""Paths that are known to compute; there are a few for each model."""


class Shed:
    """ASGI middleware: learns from the limits' refusals which paths compute, and answers those itself while ``Limits.full``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.known: dict[tuple[str, str], tuple[Any, bytes]] = {}  # method and path → route, and body of a refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limits, target = scope["state"]["server"].limits, (scope["method"], scope["path"])
        known = target in self.known and not is_conditional(scope)
        if known and (full := limits.full()) is not None:
            scope["route"], body = self.known[target]
            scope["state"]["server"].telemetry.count("refusals", error=Busy.code)
            return await refuse(send, body, full.retry_after)
        status, refused = 0, False

        async def watch(message: Message) -> None:
            nonlocal status, refused
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == Busy.status:
                    # Only the limits tell of themselves; a 503 for another reason says nothing of the path.
                    refused = any(name.lower() == b"ratelimit" for name, _ in message["headers"])
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            if known and status != 429 and not (200 <= status < 300 or refused):
                limits.make_room()  # it was not let in, and leaves no place
        if refused and target not in self.known and len(self.known) < MOST:
            self.known[target] = scope.get("route"), write_body(scope["path"])


def is_conditional(scope: Scope) -> bool:
    """Whether the client may have the picture, which is told without computing."""
    return any(name == b"if-none-match" for name, _ in scope["headers"])


def write_body(path: str) -> bytes:
    detail = Busy.default
    return json.dumps(envelope(Busy.status, detail, Busy.code) if is_openai(path) else {"detail": detail}).encode()


async def refuse(send: Send, body: bytes, retry_after: float) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % max(1, math.ceil(retry_after))),
    ]
    await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
