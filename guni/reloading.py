"""HUP under gunicorn: the workers are replaced only when what replaces them is known to work.

Gunicorn itself starts new workers at once; with a broken TOML they would end, and gunicorn with them. So a child first reads the TOML and
has the new engines load their models. It holds on to them until the new workers are there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

READY = b"ready"
LOOK = 0.2  # seconds


class Reloading:
    """Stands before an arbiter's own handling of HUP."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter, self.reload = arbiter, arbiter.handle_hup
        self.child: subprocess.Popen[bytes] | None = None
        self.pipe = -1

    def __call__(self) -> None:
        if self.child is None:
            self.begin()
        elif (word := self.hear()) is not None:
            child, self.child = self.child, None
            os.close(self.pipe)
            if word != READY:  # the one before has ended
                return self.begin()
            self.reload()
            child.terminate()

    def begin(self) -> None:
        # Neither standard output nor input: the new engines inherit the one, and workers, who are forked, the other.
        self.pipe, writing = os.pipe()
        os.set_blocking(self.pipe, False)
        self.child = subprocess.Popen([sys.executable, "-m", "guni.reloading", str(writing)], pass_fds=(writing,))
        os.close(writing)

    def hear(self) -> bytes | None:
        """What the child said: ``READY``, nothing if it has ended; ``None`` while it is at work."""
        try:
            return os.read(self.pipe, len(READY))
        except BlockingIOError:
            return None


async def prepare(pipe: int) -> None:
    """In the child. Raises ``ConfigError``; ends with status 2 where ``main`` does."""
    from api import presence
    from api.engine.client import Engine
    from api.engine.readiness import load_all
    from api.errors import ConfigError
    from api.telemetry import Telemetry
    from main import config

    arbiter, over = os.getppid(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    telemetry = Telemetry(config.server.tmp_dir, "reload")
    engines = [Engine(config, device) for device in config.devices()]
    serving = {engine.path for engine in engines if engine.path.exists()}
    for engine in engines:
        engine.open()
    try:
        await load_all(engines, serving)
        os.write(pipe, READY)
        os.kill(arbiter, signal.SIGHUP)
        while not over.is_set() and os.getppid() == arbiter:
            await asyncio.sleep(LOOK)
        presence.tell(config.server.tmp_dir, None)
        telemetry.count("reloads", outcome="applied")
    except ConfigError as error:
        presence.tell(config.server.tmp_dir, str(error.detail))
        telemetry.count("reloads", outcome="refused")
        raise
    finally:
        telemetry.close()
        await asyncio.gather(*(engine.close() for engine in engines))


def main(pipe: int) -> int:
    from api.errors import ConfigError

    try:
        asyncio.run(prepare(pipe))
    except ConfigError as error:
        print(f"the workers stay, the configuration cannot be used: {error.detail}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
