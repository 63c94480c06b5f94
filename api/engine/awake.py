"""Keeping a host's idle cores from sleeping while somebody asks for pictures, where the kernel lets this process say so.

A lone picture is handed over five times, and each time a core has to wake: from a deep sleep in a tenth of a millisecond or more, and in a
virtual machine only when the host gives the core back. The kernel takes the longest time, in µs, that a core may need to wake from whoever
has /dev/cpu_dma_latency open, for as long (PM QoS, https://docs.kernel.org/power/pm_qos_interface.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path

DEVICE = Path("/dev/cpu_dma_latency")  # root's alone, if nobody has changed that
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
LIGHT = 2  # µs: cores halt, and keep their clocks and caches
POLL = 0  # µs: cores do not even halt
ANY = 2_000_000_000  # µs: the kernel's own default


class Awake:
    """From each ``stir`` on cores sleep lightly for so many ``seconds``; for 0, or where the device cannot be opened, nothing happens."""

    def __init__(self, seconds: float, device: Path = DEVICE) -> None:
        self.seconds, self.loop = seconds, asyncio.get_running_loop()
        self.stirred, self.holding = 0.0, False
        self.fd: int | None = None
        if seconds:
            with contextlib.suppress(OSError):
                self.fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        # What a guest's kernel calls a light sleep gives the core away to the host.
        self.latency = POLL if "haltpoll" in read(DRIVER) else LIGHT

    def stir(self) -> None:
        if self.fd is None:
            return
        self.stirred = self.loop.time()
        if not self.holding:
            self.allow(self.latency)
            self.loop.call_later(self.seconds, self.look)

    def look(self) -> None:
        rest = self.stirred + self.seconds - self.loop.time()
        if rest > 0:
            self.loop.call_later(rest, self.look)
        elif self.fd is not None:
            self.allow(ANY)

    def allow(self, latency: int) -> None:
        assert self.fd is not None
        self.holding = latency != ANY
        try:
            os.pwrite(self.fd, struct.pack("=i", latency), 0)
        except OSError:  # sleepy cores are no reason to fail
            os.close(self.fd)
            self.fd = None


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
