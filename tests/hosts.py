"""Hosts with addresses of their own on this one: namespaces of the network and of processes, joined by a bridge.

What runs on one sees no process of the others; a host that is switched off says nothing to anybody, not even that it is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.serving import ROOT


class Host:
    """A host that is on. ``address`` is its own."""

    def __init__(self, bridge: str, number: int, network: str) -> None:
        self.address, self.link = f"{network}.{number}", f"{bridge}-{number}"
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--pid", "--fork", "--mount-proc", "cat"],  # which ends with this process, and the host with it
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.first = wait_for_child(self.holder.pid)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self.first))
        ip("link", "set", self.link, "master", bridge, "up")
        for arguments in (("link", "set", "lo", "up"), ("addr", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            subprocess.run(["nsenter", "-t", str(self.first), "-n", "ip", *arguments], check=True)

    def start(self, command: Sequence[str], out: IO[bytes] | int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A process on the host; the one that is returned waits for it outside, and is ended by ``stop``."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.first), "-n", "-p", "-m", f"--wd={ROOT}", "--", *command],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def pids(self, title: bytes = b"") -> list[int]:
        """Of the host's processes whose command has ``title`` in it, as they are called out here."""
        here = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == here and title in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill(self, title: bytes = b"") -> None:
        """Kills processes; the host stays and tells whoever asks that nobody is there."""
        for pid in self.pids(title):
            if pid != self.first:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pulls the wire: nothing comes through any more, and nobody is told."""
        ip("link", "set", self.link, "down")

    def switch_off(self) -> None:
        """The host is gone from one moment to the next, and says no farewell."""
        if self.holder.poll() is None:
            self.cut()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self.holder.communicate()


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM, seconds: float = 30.0) -> None:
    """Ends what ``Host.start`` began."""
    if process.poll() is None:
        for pid in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(process, signal.SIGKILL)


@contextlib.contextmanager
def network() -> Iterator[Iterator[Host]]:
    """New hosts, as many as are asked for; all are switched off at the end. Their neighbour with number 254 is this host."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("hosts of their own need root, iproute2 and util-linux")
    number = random.SystemRandom().randrange(1, 250)
    bridge, prefix = f"hosts{number}", f"10.213.{number}"
    try:
        ip("link", "add", "name", bridge, "type", "bridge")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel, or this container, has no bridges")
    made: list[Host] = []

    def more() -> Iterator[Host]:
        for number in itertools.count(1):
            made.append(Host(bridge, number, prefix))
            yield made[-1]

    try:
        ip("addr", "add", f"{prefix}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        yield more()
    finally:
        for host in made:
            host.switch_off()
        ip("link", "del", bridge)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stderr=subprocess.PIPE)


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def wait_for_child(pid: int) -> int:
    end = time.monotonic() + 10
    while not (found := children(pid)):
        assert time.monotonic() < end, "no process of its own"
        time.sleep(0.01)
    return found[0]
