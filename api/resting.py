"""Rest: while requests are refused by the hundred, the event loop sleeps now and then, so that they come to it in bursts.

A refusal takes little, but what it takes is taken from the networks where these are computed on the same cores: the kernel puts the web
worker in a network's place, which finds its caches full of something else, and so does the network after it (measured: 0.2 ms for a refusal
by itself, 0.07 for one of many). Those who are refused wait some milliseconds longer; what is at work in the engine must last as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from api.conf import Config

LONGEST = 0.03  # seconds
PART = 0.5  # of the time that an engine's queue lasts
TURNS = 8  # of the event loop: from an engine's answer to the client's, and to sending who takes its place
AGAIN = 2  # turns without a refusal: of new connections a turn accepts one


class Rest:
    """Has the running event loop sleep, for as long as ``lasting`` says that it may."""

    def __init__(self, lasting: Callable[[], float]) -> None:
        self.lasting = lasting
        self.turns = 0  # until it rests
        self.last = -LONGEST  # when it rested, or somebody was refused by himself

    def refused(self) -> None:
        """Somebody was refused. It is worth a rest if another is likely to come meanwhile."""
        if self.turns:
            self.turns = max(self.turns, AGAIN)
        elif (now := time.monotonic()) - self.last < LONGEST:
            self.turns = TURNS
            asyncio.get_running_loop().call_soon(self.turn)
        else:
            self.last = now

    def turn(self) -> None:
        self.turns -= 1
        if self.turns:
            asyncio.get_running_loop().call_soon(self.turn)
        else:
            time.sleep(min(LONGEST, self.lasting()))
            self.last = time.monotonic()


def queued(config: Config) -> float:
    """The part of its time at work in which a request waits in an engine's queue, at least, when all places are taken.

    Nothing where no engine computes on the cores of a web worker.
    """
    devices, limit = config.devices(), config.server.limit.concurrency
    if not limit.enabled or config.cluster.engine == "ray" or "cpu" not in devices:
        return 0.0
    default = config.server.engine.max_batch
    computed = sum(max(config.models[model].max_batch or default for model in models) for models in devices.values())
    return max(0.0, 1 - computed / limit.max_concurrency)
