"""Refusing in a hurry: while the queue is known to be full, requests are sent away before anything is done for them.

To route a request, to check it and to ask the limits costs a web worker about as much as serving it. Where three times as much is asked as
can be computed, that time would be missing where pictures are made.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Busy
from api.routes.parts import get_caller
from api.schemas.openai import envelope, is_openai
from api.server import Server


def find_computing(routers: Iterable[APIRouter], models: Iterable[str]) -> dict[tuple[str, str], APIRoute]:
    """The routes that ask the limits for a place, by method and path: those that want to know who calls."""
    models = list(models)
    return {
        (method, path): route
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and any(part.call is get_caller for part in route.dependant.dependencies)
        for path in {route.path.replace("{model_id}", model_id) for model_id in models}
        for method in route.methods or ()
    }


class Shed:
    """ASGI middleware: answers requests to the ``computing`` routes itself while ``Limits.full``."""

    def __init__(self, app: ASGIApp, computing: Mapping[tuple[str, str], APIRoute]) -> None:
        self.app, self.computing = app, computing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        server, route = scope["state"]["server"], self.computing.get((scope["method"], scope["path"]))
        if route is None or server.limits.crowd is None or may_be_there(scope, server):
            return await self.app(scope, receive, send)
        if (full := server.limits.full()) is not None:
            scope["route"] = route
            server.telemetry.count("refusals", error=Busy.code)
            return await refuse(send, write_body(scope["path"]), full.retry_after)
        asked = False

        async def watch(message: Message) -> None:
            nonlocal asked
            if message["type"] == "http.response.start":
                # Only the limits tell of themselves; whoever is refused for another reason has not got as far as them.
                asked = message["status"] < 300 or any(name.lower() == b"ratelimit" for name, _ in message["headers"])
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            if not asked:
                server.limits.make_room()  # it was not let in, and leaves no place


def may_be_there(scope: Scope, server: Server) -> bool:
    """Whether the client, or the hosts' cache, may have the picture: neither asks the limits."""
    if server.cache is not None and scope["method"] == "GET" and scope["path"].endswith("/image"):
        return True
    return any(name == b"if-none-match" for name, _ in scope["headers"])


@functools.cache
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
