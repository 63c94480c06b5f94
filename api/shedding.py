"""Refusing in a hurry: while the queue is known to be full, requests are sent away before anything is done for them.

To route a request, to check it and to ask the limits costs a web worker about as much as serving it. Where three times as much is asked as
can be computed, that time would be missing where pictures are made. Even so the way through the layers of an ASGI application takes most
of a refusal's time, so ``Door`` answers for all of them what has nothing unusual about it, as soon as its head is there. What servers other
than ours bring, and the unusual, ``Shed`` refuses.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import Entry
from api.errors import Busy
from api.journal import NO_STORE, choose_id
from api.resting import PART, Rest, queued
from api.routes.parts import get_caller
from api.schemas.openai import envelope, is_openai
from api.server import Server

Headers = Sequence[tuple[bytes, bytes]]
Refusal = tuple[int, bytes]
Computing = Mapping[tuple[str, str], APIRoute]
UNUSUAL = {
    *(b"content-length", b"transfer-encoding", b"upgrade", b"expect"),  # more than a head
    *(b"origin", b"if-none-match", b"x-request-id"),  # others have something to say
}
"""Header fields that have to be looked at."""


def find_computing(routers: Iterable[APIRouter], models: Iterable[str]) -> Computing:
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

    def __init__(self, app: ASGIApp, computing: Computing) -> None:
        self.app, self.computing = app, computing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        server, route = scope["state"]["server"], self.computing.get((scope["method"], scope["path"]))
        if route is None or server.limits.crowd is None or may_be_there(server, scope["method"], scope["path"], scope["headers"]):
            return await self.app(scope, receive, send)
        server.limits.arrive()
        if (full := server.limits.full()) is not None:
            scope["route"] = route
            server.telemetry.count("refusals", error=Busy.code)
            headers, body = refuse(scope["path"], math.ceil(full.retry_after))
            await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
            return await send({"type": "http.response.body", "body": body})
        server.limits.take_chance()
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


class Door:
    """What ``Shed`` and the layers before it would answer and note, without going through them."""

    def __init__(self, server: Server, computing: Computing) -> None:
        self.server = server
        self.rest: Rest | None = None
        self.routes = {(method.encode(), path.encode()): (method, path, route.path) for (method, path), route in computing.items()}
        if part := PART * queued(server.config):
            self.rest = Rest(lambda: part * server.limits.held)
        if server.tracing.on:
            self.routes = {}
        if server.cache is not None:
            self.routes = {key: names for key, names in self.routes.items() if not may_be_cached(*key)}

    def turn_away(self, method: bytes, target: bytes, headers: Headers, client: str | None) -> Refusal | None:
        """Status, and what follows the status line, for a request that is to be sent away and has no body and nothing unusual."""
        if self.server.limits.crowd is None:
            return None
        path = target.partition(b"?")[0]
        if (names := self.routes.get((method, path))) is None:
            return None
        given = b""
        for name, value in headers:
            if name in UNUSUAL:
                if name == b"x-request-id":
                    given = value
                elif name != b"content-length" or value != b"0":
                    return None
        if (full := self.server.limits.let_in()) is None:
            return None
        mark = choose_id(given)
        self.server.book.enter(Entry(client, *names, Busy.status, mark, time.time(), error=Busy.code))
        if self.rest is not None:
            self.rest.refused()
        head, body = write(path, math.ceil(full.retry_after))
        return Busy.status, b"%b%b\r\n\r\n%b" % (head, mark.encode(), body)


def may_be_there(server: Server, method: str, path: str, headers: Headers) -> bool:
    """Whether the client, or the hosts' cache, may have the picture: neither asks the limits."""
    if server.cache is not None and may_be_cached(method.encode(), path.encode()):
        return True
    return any(name == b"if-none-match" for name, _ in headers)


def may_be_cached(method: bytes, path: bytes) -> bool:
    return method == b"GET" and path.endswith(b"/image")


@functools.lru_cache(1024)
def write(path: bytes, retry_after: int) -> tuple[bytes, bytes]:
    """A refusal's header as far as the request's id, which comes last; and its body."""
    headers, body = refuse(path.decode(), retry_after)
    return b"".join(b"%b: %b\r\n" % field for field in (*headers, NO_STORE)) + b"x-request-id: ", body


@functools.lru_cache(1024)
def refuse(path: str, retry_after: int) -> tuple[Headers, bytes]:
    """Header fields and body."""
    detail = Busy.default
    body = json.dumps(envelope(Busy.status, detail, Busy.code) if is_openai(path) else {"detail": detail}).encode()
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % max(1, retry_after)),
    )
    return headers, body
