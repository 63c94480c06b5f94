"""What is done around every request: its id, the access log, the numbers, the last barrier for failures."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import TooLarge
from api.schemas.openai import envelope, is_openai

log = logging.getLogger(__name__)
access = logging.getLogger("api.access")
LINE = '%s "%s %s" %d %.1f ms %s'
NO_STORE = (b"cache-control", b"no-store")
PROPER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Journal:
    """ASGI middleware: gives a request its id, logs and counts it, and lets no traceback out."""

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
            await answer(note, scope, 500, f"internal error {mark}")
        finally:
            self.write(scope, mark, status, time.perf_counter() - begun, lasting)

    def write(self, scope: Scope, mark: str, status: int, seconds: float, lasting: bool) -> None:
        """``lasting`` answers end when their client leaves: how long they took says nothing of the server."""
        telemetry, client = scope["state"]["server"].telemetry, (scope.get("client") or [None])[0]
        route = getattr(scope.get("route"), "path", "other")
        tell(Answer(client, scope["method"], scope["path"], route, status, mark, seconds))
        telemetry.count("requests", method=scope["method"], route=route, status=str(status))
        if not lasting:
            telemetry.observe("request_seconds", seconds, route=route)


class Answer(NamedTuple):
    """What the access log tells of one."""

    client: str | None
    method: str
    path: str
    route: str
    status: int
    mark: str
    """The request's id."""
    seconds: float = 0.0
    """That it took."""
    at: float | None = None
    """When it was given, in seconds of Unix time, if not now."""


def tell(answer: Answer) -> None:
    """Writes it into the access log."""
    client, method, path, route, status, mark, seconds, at = answer
    if access.isEnabledFor(logging.INFO):  # what ``info`` does, less the search for who called it
        client, took = client or "-", round(1000 * seconds, 1)
        told = (client, method, path, status, took, mark)
        fields = {"client": client, "method": method, "path": path, "route": route, "status": status, "ms": took, "request_id": mark}
        line = access.makeRecord(access.name, logging.INFO, __file__, 0, LINE, told, None, extra={"fields": fields})
        if at is not None:
            line.created, line.msecs = at, int(1000 * (at % 1))
        access.handle(line)


def describe(span: Any, scope: Scope, status: int, mark: str) -> None:
    """A request's span in the words of OpenTelemetry's semantic conventions for HTTP."""
    route = getattr(scope.get("route"), "path", "other")
    span.update_name(f"{scope['method']} {route}")
    told = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status, "url.path": scope["path"]}
    span.set_attributes(told | {"request.id": mark})


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
            return await answer(send, scope, TooLarge.status, self.message())
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
                await answer(send, scope, TooLarge.status, self.message())

        await self.app(scope, count, replace)

    def message(self) -> str:
        return f"the request body is larger than {self.limit} bytes"


def choose_id(given: bytes) -> str:
    """A request's id: the one that a proxy gave it, if it is a proper one, else a new one."""
    if given and PROPER.fullmatch(text := given.decode("latin-1")):
        return text
    return f"{random.getrandbits(128):032x}"


async def answer(send: Callable[[Message], Any], scope: Scope, status: int, detail: str) -> None:
    content = json.dumps(envelope(status, detail) if is_openai(scope["path"]) else {"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), NO_STORE]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
