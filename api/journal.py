"""What is done around every request: its id, the access log, the numbers, the last barrier for failures."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import Entry
from api.errors import TooLarge
from api.schemas.openai import envelope, is_openai

log = logging.getLogger(__name__)
NO_STORE = (b"cache-control", b"no-store")
HEADED = re.compile(r"/(healthz|readyz|version|[^/]+/image)?")
PROPER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Journal:
    """ASGI middleware: gives a request its id, has it logged and counted, and lets no traceback out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"])
        mark, begun, status, lasting = choose_id(given.get(b"x-request-id", b"")), time.perf_counter(), 0, False

        async def note(message: Message) -> None:
            nonlocal status, lasting
            if message["type"] == "http.response.start":
                status = message["status"]
                told = {name.lower(): value for name, value in message["headers"]}
                message["headers"] = [*message["headers"], (b"x-request-id", mark.encode())]
                if b"cache-control" not in told:
                    message["headers"].append(NO_STORE)
                lasting = told.get(b"content-type", b"").startswith(b"text/event-stream")
            await send(message)

        try:
            parent = given.get(b"traceparent", b"").decode("latin-1")
            with scope["state"]["server"].tracing.span(scope["method"], parent, server=True) as span:
                await self.app(scope, receive, note)
                if span is not None:
                    describe(span, scope, status, mark)
        except Exception:
            log.exception("failure %s", mark, extra={"fields": {"request_id": mark}})
            if status:
                raise
            await fail(note, scope, 500, f"internal error {mark}")
        finally:
            client, route = (scope.get("client") or [None])[0], getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - begun
            entry = Entry(client, scope["method"], scope["path"], route, status, mark, time.time(), seconds, lasting)
            scope["state"]["server"].book.enter(entry)


def describe(span: Any, scope: Scope, status: int, mark: str) -> None:
    """A request's span in the words of OpenTelemetry's semantic conventions for HTTP."""
    route = getattr(scope.get("route"), "path", "other")
    span.update_name(f"{scope['method']} {route}")
    told = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status, "url.path": scope["path"]}
    span.set_attributes(told | {"request.id": mark})


class Heads:
    """ASGI middleware: HEAD is answered as GET is, without the body, where GET says what a server is or names a picture for ever."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or not HEADED.fullmatch(scope["path"]):
            return await self.app(scope, receive, send)

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        inner = {**scope, "method": "GET"}  # whoever is outside, the HTTP server above all, has to know of HEAD
        try:
            await self.app(inner, receive, send_head)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


class BodyLimit:
    """ASGI middleware: no request brings more than ``limit`` bytes, whatever its headers say."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared == b"0" and b"transfer-encoding" not in headers:  # nothing will come
            return await self.app(scope, receive, send)
        if declared.isdigit() and int(declared) > self.limit:
            return await fail(send, scope, TooLarge.status, self.message())
        got, told = 0, False

        async def count() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            # To the application the client has gone; what it says of that is replaced below.
            return {"type": "http.disconnect"} if got > self.limit else message

        async def replace(message: Message) -> None:
            nonlocal told
            if got <= self.limit:
                await send(message)
            elif not told:
                told = True
                await fail(send, scope, TooLarge.status, self.message())

        await self.app(scope, count, replace)

    def message(self) -> str:
        return f"the request body is larger than {self.limit} bytes"


def choose_id(given: bytes) -> str:
    """A request's id: the one that a proxy gave it, if it is a proper one, else a new one."""
    if given and PROPER.fullmatch(text := given.decode("latin-1")):
        return text
    return f"{random.getrandbits(128):032x}"


async def fail(send: Callable[[Message], Any], scope: Scope, status: int, detail: str) -> None:
    content = json.dumps(envelope(status, detail) if is_openai(scope["path"]) else {"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), NO_STORE]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
