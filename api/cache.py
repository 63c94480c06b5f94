"""Pictures that some host has made, in the Redis that all hosts share: what a URL names need be computed only once.

Nothing depends on it. While Redis is away, each host computes for itself.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from msgspec.structs import replace

from api.cluster import connect, failures, name_space
from api.engine.wire import Picture, pack, unpack_all

log = logging.getLogger(__name__)
REST = 5.0  # seconds for which a server that failed is not asked
LARGEST = 8 << 20  # bytes of a picture that is kept


class Cache:
    """Keeps each picture for ``seconds``, if the server has room for so long. Its methods raise nothing."""

    def __init__(self, url: str, seconds: float) -> None:
        self.client = connect(url, text=False)
        self.space, self.seconds = f"{name_space(self.client)}picture:", seconds
        self.back = 0.0  # when it may be asked again, by the monotonic clock

    async def find(self, name: str) -> Picture | None:
        frame = await self.ask(lambda: self.client.get(self.space + name))
        try:
            (found,) = unpack_all(frame or b"")
        except (ValueError, struct.error):
            return None  # nothing, or nothing of ours
        return found if isinstance(found, Picture) else None

    async def keep(self, name: str, picture: Picture) -> None:
        """Keeps the picture's bytes and what is told beside them, not what it was made from."""
        if len(picture.data) <= LARGEST:
            frame = pack(replace(picture, latent=None, styles=None, extra={}))
            await self.ask(lambda: self.client.set(self.space + name, frame, px=math.ceil(1000 * self.seconds)))

    async def ask(self, call: Callable[[], Any]) -> Any:
        if time.monotonic() < self.back:
            return None
        try:
            return await cast(Awaitable[Any], call())
        except failures() as error:
            self.back = time.monotonic() + REST
            log.warning("redis gives and takes no pictures, which are made here for %.0f s: %s", REST, error)
            return None

    async def close(self) -> None:
        await self.client.aclose()
