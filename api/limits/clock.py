"""A clock for windows: the same in all processes of a host, never set back, and going on over a reboot.

The wall clock is shared but is moved by people and NTP: a step forward would empty every quota, a step back would
close it for as long. The boot clock (``CLOCK_BOOTTIME``, which goes on during suspend) only runs forward, but starts at zero with each
boot, while the state may survive one. So: the boot clock plus an offset that the first process of a boot
sets from the wall clock and stores, and that never takes the time behind what it was.
"""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> int:
    """Nanoseconds since boot."""
    return time.clock_gettime_ns(CLOCK)


def boot_id() -> str:
    """Names this boot; empty where the system does not tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def anchor(latest: int) -> int:
    """The offset of a new boot, in nanoseconds; ``latest`` is the last moment that the state knows."""
    return max(time.time_ns(), latest) - boot_time()
