"""The short way to the routes that make one model's pictures out of a query alone.

FastAPI looks for the route among all, and for what it is called with among all that could be there: most of the application's own work
for a picture (docs/performance.md). Here the path names the route, and the query is checked by the same class. Whatever is unusual
goes FastAPI's way, which alone tells clients what is wrong with their input; tests/test_shortcut.py compares the two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ServerError
from api.routes import generation
from api.routes.parts import get_caller, identify_owner
from api.schemas.requests import GenerateQuery
from api.server import Server

UNUSUAL = {b"x-session", b"x-parents", b"transfer-encoding"}
"""Header fields that FastAPI is to look at, or that announce a body."""
MOST = 2000  # characters of a query


@dataclass(frozen=True)
class Way:
    """``call`` takes a request, the server, the caller, the model's info and the query as an object of ``query``."""

    call: Callable[..., Awaitable[Response]]
    query: type[BaseModel]
    route: Any

    @classmethod
    def of(cls, router: APIRouter, call: Callable[..., Awaitable[Response]], query: type[BaseModel]) -> Way:
        return cls(call, query, next(route for route in router.routes if getattr(route, "endpoint", None) is call))


WAYS = {
    ("POST", "generate"): Way.of(generation.router, generation.generate, GenerateQuery),
    ("GET", "image"): Way.of(generation.router, generation.image, generation.ImageQuery),
}


class Shortcut:
    """ASGI middleware, the innermost. ``tell`` makes an answer of what a route raises."""

    def __init__(self, app: ASGIApp, tell: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self.app, self.tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = find(scope)
        query = None if way is None else read_query(scope["query_string"], way.query)
        if way is None or query is None:
            return await self.app(scope, receive, send)
        server: Server = scope["state"]["server"]
        scope["route"] = way.route
        request = Request(scope, receive, send)
        try:
            owner = identify_owner(request)
            info = await server.info(scope["path"].split("/")[1])
            response = await way.call(request, server, await get_caller(request, server, owner), info, query)
        except ServerError as error:
            response = await self.tell(request, error)
        await response(scope, receive, send)


def find(scope: Scope) -> Way | None:
    """The way of a request that has one: for a model of this server, without a body, with nothing unusual about it."""
    if scope["type"] != "http" or scope.get("root_path"):
        return None
    parts = scope["path"].split("/")
    way = WAYS.get((scope["method"], parts[2])) if len(parts) == 3 else None
    if way is None or parts[1] not in scope["state"]["server"].config.models:
        return None
    for name, value in scope["headers"]:
        if name in UNUSUAL or (name == b"content-length" and value != b"0"):
            return None
    return way


def split(text: str) -> list[tuple[str, str]]:
    """Names and values of a query; most have nothing in them that has to be decoded."""
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True)
    return [(name, value) for name, _, value in (pair.partition("=") for pair in text.split("&") if pair)]


def read_query(text: bytes, cls: type[BaseModel]) -> BaseModel | None:
    """What the query says, if every field of it is there once, is no list, and is right."""
    if len(text) > MOST:
        return None
    pairs = split(text.decode("latin-1"))
    given = dict(pairs)
    if len(given) < len(pairs) or "translate" in given:
        return None
    try:
        return cls.model_validate(given)
    except ValidationError:
        return None
