"""Waiting for engines to be ready before they are put in charge."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from api.engine.transport import Transport
from api.errors import ConfigError

LOOK = 0.05  # seconds


async def load_all(transports: Iterable[Transport], serving: Collection[str]) -> None:
    """Returns when all models are loaded. Raises ``ConfigError`` for those that cannot be.

    Those whose names are among ``serving`` serve already; what they cannot load is no news.
    """
    new = [transport for transport in transports if transport.name not in serving]
    while any(not transport.linked or transport.loading for transport in new):
        if faults := [transport.trouble for transport in new if transport.trouble]:
            raise ConfigError("\n".join(faults))
        await asyncio.sleep(LOOK)
    if failures := [f"models.{model_id}: {fault}" for transport in new for model_id, fault in transport.failures.items()]:
        raise ConfigError("\n".join(failures))
