"""Where an engine's Unix socket is, and how it is reached wherever that may be."""

from __future__ import annotations

import os
from pathlib import Path

from api.conf import Config, engine_digest

# sockaddr_un holds 108 bytes, the closing zero included.
LONGEST = 107

folders: dict[Path, int] = {}


def socket_path(config: Config, device: str) -> Path:
    """The socket of a configuration's engine for a device."""
    return config.server.tmp_dir / f"engine-{engine_digest(config)}-{device.replace(':', '')}.sock"


def reach(path: Path) -> str:
    """A name for ``path`` that fits into a socket address; a long one goes through an open folder."""
    if len(os.fsencode(path)) <= LONGEST:
        return str(path)
    if path.parent not in folders:
        folders[path.parent] = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folders[path.parent]}/{path.name}"
