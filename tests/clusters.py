"""Small Ray clusters for tests: of one node on this host, or of several with hosts of their own."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from tests.hosts import Host, stop
from tests.serving import Crowd, Running, free_port

SMALL = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
}
"""Fewer processes and quicker turns than a cluster for work would want, and no key that lies about in this account."""
MODEL = b":model"
"""In a replica's title: "ray::ServeReplica:stylegan.plain:model", and "ray::plain:model.check_health" while it is asked how it is."""
PORT = 6379  # of heads that have a host of their own
START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-gpus=0", "--object-store-memory=100000000"]


class Cluster:
    """``address`` is for the TOML; the node is the leader of a session of its own, to which all its processes belong."""

    def __init__(self, folder: Path, cpus: int) -> None:
        port = free_port()
        self.address, self.log = f"127.0.0.1:{port}", folder / "start.log"
        follow = ["setpriv", "--pdeathsig", "TERM"]  # so that it does not outlive a run of tests that is killed
        command = [*follow, *START, "--head", f"--temp-dir={folder}", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false"]
        with self.log.open("wb") as out:
            self.node = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1"],
                env=os.environ | SMALL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        wait(self.node, self.log)

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
        return self.processes(MODEL)

    def end(self) -> None:
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.node.poll()
        self.node.wait()


def wait(node: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        if time.monotonic() > end or node.poll() is not None:
            raise RuntimeError(f"Ray does not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


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


class Load(Crowd):
    """Clients that ask ``plain`` for pictures as long as they are wanted; ``failures`` holds whatever was not a 200."""

    def __init__(self, server: Running, count: int) -> None:
        super().__init__(*(functools.partial(self.ask, number) for number in range(count)))
        self.server = server
        self.failures: list[str] = []
        self.waits: list[float] = []  # seconds that the answers took

    def ask(self, number: int) -> None:
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                answer = httpx.post(f"{self.server.url}/plain/generate", params={"seed": number}, timeout=200)
                fault = None if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            except httpx.HTTPError as error:
                fault = repr(error)
            if fault:
                self.failures.append(f"{fault} after {time.monotonic() - begun:.1f} s")
                time.sleep(0.1)
            self.waits.append(time.monotonic() - begun)

    def more(self, count: int, seconds: float = 180.0) -> None:
        """Waits until so many more are answered."""
        wanted = len(self.waits) + count
        until(lambda: len(self.waits) >= wanted, seconds)

    def check(self) -> None:
        """Ends it. Every request has to have been answered."""
        self.__exit__()
        assert not self.failures, (len(self.failures), self.failures[:3])


def until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    """Waits; what Ray has to notice and to mend takes its time on a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


class Node:
    """A Ray node on a host of its own: the head where no other head's address is given."""

    def __init__(self, host: Host, folder: Path, *, head: str | None = None, cpus: int = 0, environment: Mapping[str, str] | None = None):
        self.host, self.environment = host, {**SMALL, **(environment or {})}
        self.folder, self.log = folder, folder / "start.log"
        folder.mkdir()
        self.command = [*START, f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
        self.command += [f"--address={head}"] if head else ["--head", f"--port={PORT}", "--include-dashboard=false"]
        self.process = self.start()

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as out:
            return self.host.start(self.command, out, self.environment)

    def restart(self) -> None:
        """After all of the host's processes were killed."""
        self.process.wait()
        self.process = self.start()

    def wait(self) -> None:
        wait(self.process, self.log)

    def end(self) -> None:
        self.host.switch_off()
        self.process.wait()

    def replicas(self) -> list[int]:
        """Pids of the node's replicas of models."""
        return self.host.pids(MODEL)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of ``python -m api`` on the host."""
        process = self.host.start([sys.executable, "-m", "api", *map(str, arguments)], subprocess.PIPE)
        out, _ = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), "")

    @contextlib.contextmanager
    def serve(self, toml: Path) -> Iterator[Running]:
        """`python main.py` on the host."""
        log = toml.parent / f"server-{self.host.address}.log"
        environment = {"STYLEGAN_TOML": str(toml), "HOST": self.host.address, "PORT": "8000", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as out:
            process = self.host.start([sys.executable, "main.py"], out, environment)
        running = Running(f"http://{self.host.address}:8000", process, log, toml.parent)
        try:
            running.wait_ready(120)
            yield running
        finally:
            running.client.close()
            stop(process)
