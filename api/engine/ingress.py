"""Web workers as a deployment of Ray Serve, whose proxies take HTTP on the cluster's hosts and hand it on to them."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from api.conf import load_config

Exchange = Callable[..., Awaitable[Any]]


class Worker:
    """``toml`` is a path on the worker's host; the environment says what ``main.py`` reads there, as it does to gunicorn's workers."""

    def __init__(self, toml: str) -> None:
        load_config(toml)  # raises what is wrong with it, where main would print that and leave

    async def __serve_build_asgi_app__(self) -> Any:
        return Stateful(importlib.import_module("main").app)


class Stateful:
    """An ASGI application whose requests see what its lifespan has opened: Serve runs the one and leaves it out of the others."""

    def __init__(self, app: Exchange) -> None:
        self.app, self.state = app, dict[str, Any]()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Exchange, send: Exchange) -> None:
        scope["state"] = self.state if scope["type"] == "lifespan" else dict(self.state)
        await self.app(scope, receive, send)
