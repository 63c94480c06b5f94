"""The Redis, or Valkey, that several hosts share. Its library is imported here, and only when a URL names a server."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

from api.conf import Config
from api.errors import ConfigError

if TYPE_CHECKING:
    from redis.asyncio import Redis

TIMEOUT = 1.0  # seconds that a server may take to answer before it counts as gone
SCHEMES = {"valkey": "redis", "valkeys": "rediss"}


def connect(url: str, *, text: bool = True) -> Redis:
    """A client that connects when it is first used, and that tries nothing twice; it answers ``text`` or bytes. Raises ``ConfigError``."""
    try:
        library = importlib.import_module("redis.asyncio")
        retrying = importlib.import_module("redis.asyncio.retry")
        backoff = importlib.import_module("redis.backoff")
    except ModuleNotFoundError as error:
        raise ConfigError(f"cluster.redis: {error.name} is not installed; pip install -r requirements-cluster.txt") from None
    scheme, mark, rest = url.partition("://")
    try:
        client: Redis = library.Redis.from_url(
            SCHEMES.get(scheme, scheme) + mark + rest,
            decode_responses=text,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            # Whether a script has run when its answer is lost, nobody knows; the library would run it again.
            retry=retrying.Retry(backoff.NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError(f"cluster.redis: {error}") from None
    return client


def failures() -> tuple[type[Exception], ...]:
    """What the library raises where a server cannot be used. What uvloop's transports raise that have just been closed, it lets through."""
    from redis.exceptions import RedisError

    return RedisError, OSError, RuntimeError


async def greet(client: Redis) -> None:
    """Raises ``ConfigError`` if the server is there and does not want us; one that is away may come."""
    from redis.exceptions import AuthenticationError, ResponseError

    try:
        await cast(Awaitable[bool], client.ping())
    except failures() as error:
        if isinstance(error, ResponseError) or any(isinstance(part, AuthenticationError) for part in (error, error.__cause__)):
            await client.aclose()
            raise ConfigError(f"cluster.redis: the server refuses: {error}") from None


def name_space(client: Redis) -> str:
    """What our keys and channels begin with; channels, unlike keys, are not apart by the database's number of themselves."""
    number = client.connection_pool.connection_kwargs.get("db") or 0
    return f"{{stylegan-{number}}}:"


def fill_in(config: Config, host: str | None, port: str | None, password: str | None) -> Config:
    """The configuration with what the environment says of Redis where the TOML is silent. Raises ``ConfigError``."""
    url = config.cluster.redis
    if url is None and host:
        if port and not port.isdecimal():
            raise ConfigError(f"REDIS_PORT: found {port!r}; must be a number")
        url = f"redis://{f'[{host}]' if ':' in host else host}:{port or 6379}/0"
    if url is None:
        return config
    if password and url.startswith("unix:") and "password=" not in url:
        url += ("&" if "?" in url else "?") + "password=" + quote(password, safe="")
    elif password and not urlsplit(url).password and not url.startswith("unix:"):
        scheme, _, rest = url.partition("://")
        user, at, place = rest.rpartition("@")
        url = f"{scheme}://{user.rstrip(':') if at else ''}:{quote(password, safe='')}@{place}"
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"redis": url})})
