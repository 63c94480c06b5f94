"""Starting the process of an engine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from api.conf import Config
from api.engine.socket import socket_path

ROOT = Path(__file__).resolve().parents[2]
early: dict[Path, subprocess.Popen[bytes]] = {}
"""Engines, by their sockets, that were started before anybody wanted to connect to them."""


def launch(config: Config, device: str) -> subprocess.Popen[bytes]:
    """Starts an engine, or gives the one that was started early. If another has the socket already, the new one ends with status 0."""
    path = socket_path(config, device)
    if path in early:
        return early.pop(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "api.engine.process", device, str(path)]
    # A session of its own: Ctrl-C ends the server, and the engine when its last worker is gone.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(config.model_dump_json().encode())
    # The engine outlives its link and perhaps this process; a thread collects its status whenever it ends.
    threading.Thread(target=child.wait, daemon=True).start()
    return child


def launch_early(config: Config) -> None:
    """Starts the engines that this host needs and that do not run: of all that a server begins with they take longest."""
    if config.cluster.engine == "local":
        for device in config.devices():
            if not (path := socket_path(config, device)).exists():
                with contextlib.suppress(OSError):  # who wants to connect tries again, and tells
                    early[path] = launch(config, device)
