"""A Ray cluster of one small node on this host, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.serving import free_port

SMALL = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
}
"""Fewer processes and quicker turns than a cluster for work would want."""


class Cluster:
    """``address`` is for the TOML; the node is the leader of a session of its own, to which all its processes belong."""

    def __init__(self, folder: Path, cpus: int) -> None:
        port = free_port()
        self.address, self.log = f"127.0.0.1:{port}", folder / "start.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}", f"--port={port}"]
        command += [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--include-dashboard=false"]
        with self.log.open("wb") as out:
            self.node = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1"],
                env=os.environ | SMALL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        end = time.monotonic() + 120
        while "Ray runtime started" not in self.log.read_text():
            if time.monotonic() > end or self.node.poll() is not None:
                raise RuntimeError(f"Ray does not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def processes(self, title: bytes = b"") -> list[int]:
        """Pids of the cluster's processes whose title, as Ray gives them, has this in it."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.owns(entry) and title in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def owns(self, entry: Path) -> bool:
        state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        return state != "Z" and int(session) == self.node.pid

    def replicas(self) -> list[int]:
        return self.processes(b"ServeReplica:")

    def end(self) -> None:
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.node.poll()
        self.node.wait()


@contextlib.contextmanager
def cluster(cpus: int = 16) -> Iterator[Cluster]:
    """Runs a node that pretends to have ``cpus``."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
    made = Cluster(folder, cpus)
    try:
        made.wait()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)
