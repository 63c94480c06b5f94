"""The application: composes routes and middleware around one server. Nothing is opened before its lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import Environment, Tokens
from api.conf import Config
from api.errors import ServerError
from api.journal import BodyLimit, Heads, Journal
from api.logs import attach_loggers
from api.routes import (
    blobs,
    diffusion,
    editing,
    exports,
    gathering,
    generation,
    images,
    info,
    live,
    manipulation,
    openai,
    operations,
    projection,
    remaking,
    tasks,
    tokens,
    ui,
)
from api.routes.docs import add_docs
from api.routes.shortcut import Shortcut
from api.schemas.openai import envelope, envelope_faults, is_openai, status_of
from api.server import Server
from api.shedding import Door, Shed, find_computing
from api.tasks import working

ROUTERS = (
    info.router,
    ui.router,
    operations.router,
    tokens.router,
    tasks.router,
    blobs.router,
    exports.router,
    remaking.router,
    images.router,
    gathering.router,
    diffusion.router,
    openai.router,
    generation.router,
    manipulation.router,
    editing.router,
    projection.router,
    live.router,
)
"""What has a name of its own comes before models, whose names are anything."""


def create_app(config: Config, environment: Environment | None = None) -> FastAPI:
    """The application for a configuration; a process may build several. Raises ``ConfigError``."""
    computing = find_computing(ROUTERS, config.models)
    signer = Tokens(config.auth, environment or Environment(), config.server.tmp_dir)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        attach_loggers(config.server.logger, config.server.log)
        server = await Server.open(config, signer)
        try:
            async with working(server):
                with before_exit(server.hang_up):
                    settle_memory()
                    yield {"server": server, "turn_away": Door(server, computing).turn_away}
        finally:
            await server.close()

    def surround(app: ASGIApp) -> ASGIApp:
        app = BodyLimit(Shortcut(app, tell_error), config.server.http.max_body)
        app = Shed(app, computing)
        if config.server.http.cors.enabled:
            anything = ["*"]
            app = CORSMiddleware(app, config.server.http.cors.origins, anything, anything, expose_headers=anything)
        return Journal(Heads(app))

    app = Application(
        surround,
        title=config.title,
        version=config.version,
        description=config.description,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # api/tracing.py and api/telemetry.py know more
        lifespan=lifespan,
    )
    app.openapi = lambda: state_faults(state_bounds(FastAPI.openapi(app), config))  # type: ignore[method-assign]
    add_docs(app, docs=config.docs, redoc=config.redoc)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ServerError, tell_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_other)
    return app


class Application(FastAPI):
    """FastAPI within layers of our own: what they answer, which is most pictures and all refusals, passes none of FastAPI's."""

    def __init__(self, surround: Callable[[ASGIApp], ASGIApp], **settings: Any) -> None:
        super().__init__(**settings)
        self.surround = surround

    def build_middleware_stack(self) -> ASGIApp:
        stack = super().build_middleware_stack()
        # Starlette's own barrier would answer failures before ``Journal`` hears of them, without the request's id.
        return self.surround(stack.app if isinstance(stack, ServerErrorMiddleware) else stack)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.middleware_stack is None:
            return await super().__call__(scope, receive, send)
        scope["app"] = self  # all that FastAPI's and Starlette's own would do
        await self.middleware_stack(scope, receive, send)


def settle_memory() -> None:
    """What is there now stays: the collector need not look at all of it again and again, which took a tenth of a request's time.

    Nor need it look after every few hundred objects, of which the requests at work have more; it did for a twenty-fifth of the time.
    """
    gc.unfreeze()  # of a predecessor in this process, which may have gone
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def state_bounds(document: dict[str, Any], config: Config) -> dict[str, Any]:
    """Puts into OpenAPI what the TOML bounds."""
    names = ("prompt", "negative_prompt")
    if not config.auth.enabled:
        document["components"].pop("securitySchemes", None)
    for schema in document["components"]["schemas"].values():
        for name in set(names) & set(schema.get("properties", ())):
            bound(schema["properties"][name], config.prompts.max_length)
    for path in document["paths"].values():
        for operation in path.values():
            if not config.auth.enabled:
                operation.pop("security", None)
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:
                    bound(parameter["schema"], config.prompts.max_length)
    return document


def bound(schema: dict[str, Any], length: int) -> None:
    for part in [schema, *schema.get("anyOf", ())]:
        if part.get("type") == "string":
            part["maxLength"] = length


def state_faults(document: dict[str, Any]) -> dict[str, Any]:
    """Takes out of OpenAPI what FastAPI says of itself: under /v1 invalid input gets 400, which its routes declare."""
    for path, methods in document["paths"].items():
        for operation in methods.values() if is_openai(path) else ():
            operation["responses"].pop("422", None)
    return document


async def tell_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError)
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    status = status_of(request.url.path, error.status)
    return JSONResponse(shape(request, status, error.detail, error.code), status, headers)


async def tell_invalid(request: Request, error: Exception) -> Response:
    """FastAPI's form, without what the client sent: it may be large, and need not be JSON."""
    assert isinstance(error, RequestValidationError)
    faults = [{key: fault[key] for key in ("type", "loc", "msg") if key in fault} for fault in error.errors()]
    if is_openai(request.url.path):
        return JSONResponse(envelope_faults(faults), 400)
    return JSONResponse({"detail": jsonable_encoder(faults)}, 422)


async def tell_other(request: Request, error: Exception) -> Response:
    """No such path, no such method."""
    assert isinstance(error, HTTPException)
    return JSONResponse(shape(request, error.status_code, error.detail), error.status_code, error.headers)


def shape(request: Request, status: int, detail: Any, code: str | None = None) -> dict[str, Any]:
    return envelope(status, detail, code) if is_openai(request.url.path) else {"detail": detail}


class Farewell:
    """A signal's handler that first says goodbye to what would keep uvicorn from leaving."""

    def __init__(self, handle: Callable[..., Any]) -> None:
        self.handle, self.loop = handle, asyncio.get_running_loop()
        self.calls: list[Callable[[], None]] = []

    def __call__(self, *arguments: Any) -> None:
        for call in self.calls:
            self.loop.call_soon_threadsafe(call)
        self.handle(*arguments)


@contextlib.contextmanager
def before_exit(call: Callable[[], None]) -> Iterator[None]:
    """Within this, ``call`` is called when a signal asks uvicorn to leave. Several may be within it at once.

    It waits for open responses before it ends the lifespan, and an event stream would never end.
    """
    farewells = []
    for number in (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ():
        handle = signal.getsignal(number)
        if callable(handle) and not isinstance(handle, Farewell):
            handle = Farewell(handle)
            signal.signal(number, handle)
        if isinstance(handle, Farewell):
            handle.calls.append(call)
            farewells.append((number, handle))
    try:
        yield
    finally:
        for number, farewell in farewells:
            farewell.calls.remove(call)
            if not farewell.calls:
                signal.signal(number, farewell.handle)
