"""Where a running server is found by those who want it to read its TOML again, and what came of that: one small file in ``tmp_dir``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from api.errors import ConfigError
from api.telemetry import birth

FILE = "server.json"


@dataclass(frozen=True, slots=True)
class Presence:
    """``pid`` takes SIGHUP; ``born`` tells it from a later process of its number. ``turn`` counts reloads, ``refused`` is of the last."""

    pid: int
    born: str | None
    turn: int = 0
    refused: str | None = None


def settle(folder: Path) -> None:
    """Makes the folder, if it is not there yet. Raises ``ConfigError`` where it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{FILE}.{os.getpid()}"
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ConfigError(f"server.tmp_dir: {str(folder)!r} cannot be used: {error.strerror}") from error


def find(folder: Path) -> Presence | None:
    """The server that uses ``folder``, if one runs."""
    try:
        found = Presence(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if birth(found.pid) == found.born else None


def appear(folder: Path, pid: int) -> None:
    """Says that the process ``pid`` is the server's; saying it again changes nothing."""
    known = find(folder)
    if known is None or known.pid != pid:
        write(folder, Presence(pid, birth(pid)))


def tell(folder: Path, refused: str | None) -> None:
    """Says what came of a reload: why it was refused, or nothing."""
    if known := find(folder):
        write(folder, replace(known, turn=known.turn + 1, refused=refused))


def write(folder: Path, presence: Presence) -> None:
    draft = folder / f"{FILE}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(presence)))
    draft.replace(folder / FILE)
