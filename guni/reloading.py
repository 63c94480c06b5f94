"""HUP under gunicorn: the workers are replaced only when what replaces them is known to work.

Gunicorn itself starts new workers at once; with a broken TOML they would end, and gunicorn with them. So a child first reads the TOML and
has the new engines load their models. It holds on to them until the new workers are there.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.conf import Config

READY = b"ready"
LOOK = 0.2  # seconds
HOLD = 20.0  # seconds that engines are held once new workers were called: they are imported for longer, at times, than engines linger
NOTE = mmap.mmap(-1, 4096)
"""Where workers, who are forked, note their ``tmp_dir`` for the arbiter: a TOML that is broken does not tell it any more."""


def note(tmp_dir: Path) -> None:
    NOTE[:] = os.fsencode(tmp_dir).ljust(len(NOTE), b"\0")


def noted() -> bytes:
    return NOTE[:].rstrip(b"\0")


class Reloading:
    """Stands before an arbiter's own handling of HUP."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter, self.reload = arbiter, arbiter.handle_hup
        self.child: subprocess.Popen[bytes] | None = None
        self.holder: subprocess.Popen[bytes] | None = None  # the child before it, which may hold engines that nobody wants any more
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
            for told in filter(None, (child, self.holder)):
                told.terminate()
            self.holder = child

    def begin(self) -> None:
        # Neither standard output nor input: the new engines inherit the one, and workers, who are forked, the other.
        self.pipe, writing = os.pipe()
        os.set_blocking(self.pipe, False)
        command: list[str | bytes] = [sys.executable, "-m", "guni.reloading", str(writing), noted()]
        self.child = subprocess.Popen(command, pass_fds=(writing,))
        os.close(writing)

    def hear(self) -> bytes | None:
        """What the child said: ``READY``, nothing if it has ended; ``None`` while it is at work."""
        try:
            return os.read(self.pipe, len(READY))
        except BlockingIOError:
            return None


async def prepare(config: Config, pipe: int) -> None:
    """In the child, which is told by SIGTERM that the new workers were called: returns when they have had time to come, or told so again.

    Raises ``ConfigError``.
    """
    from api.engine.client import Engine
    from api.engine.readiness import load_all

    arbiter, called, over = os.getppid(), asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: (over if called.is_set() else called).set())
    # The models of a cluster are brought there by ``deploy``; here is nothing to load.
    engines = [Engine(config, device) for device in config.devices()] if config.cluster.engine == "local" else []
    serving = {engine.name for engine in engines if engine.path.exists()}
    for engine in engines:
        engine.open()
    try:
        await load_all(engines, serving)
        os.write(pipe, READY)
        os.kill(arbiter, signal.SIGHUP)
        while not called.is_set() and os.getppid() == arbiter:
            await asyncio.sleep(LOOK)
        tell(config.server.tmp_dir, None)
        end = time.monotonic() + HOLD
        while not over.is_set() and os.getppid() == arbiter and time.monotonic() < end:
            await asyncio.sleep(LOOK)
    finally:
        await asyncio.gather(*(engine.close() for engine in engines))


def tell(tmp_dir: Path, refused: str | None) -> None:
    """Says what came of it, to who asked for it and in the metrics."""
    from api import presence
    from api.telemetry import Telemetry

    telemetry = Telemetry(tmp_dir, "reload")
    telemetry.count("reloads", outcome="applied" if refused is None else "refused")
    telemetry.close()
    presence.tell(tmp_dir, refused)


def main(pipe: int, tmp_dir: str) -> int:
    """``tmp_dir`` is that of the workers; it is empty if none has started yet."""
    from api.errors import ConfigError

    try:
        from main import config

        asyncio.run(prepare(config, pipe))
        return 0
    except ConfigError as error:
        refused = str(error.detail)
    except SystemExit as end:  # so ends who imports main with a broken TOML
        refused = str(end.__cause__)
    except Exception as error:  # whatever it is, who asked is not to wait for ever
        traceback.print_exc()
        refused = f"{type(error).__name__}: {error}"
    if tmp_dir:
        tell(Path(tmp_dir), refused)
    print(f"the workers stay, the configuration cannot be used: {refused}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
