"""The access log, and the numbers of requests."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import NamedTuple
from urllib.parse import quote

from api.telemetry import Telemetry

access = logging.getLogger("api.access")
LINE = '%s "%s %s" %d %.1f ms %s'
MOMENT = 0.05  # seconds


class Entry(NamedTuple):
    """What there is to tell of an answer."""

    client: str | None
    method: str
    path: str
    route: str
    status: int
    mark: str
    """The request's id."""
    at: float
    """When the answer was given, in seconds of Unix time."""
    seconds: float = 0.0
    """That it took."""
    lasting: bool = False
    """It ended when its client left: how long it took says nothing of the server."""


class Book:
    """Logs and counts answers, those of a moment in one go: each by itself, between networks, would take several times as long."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.entries: list[Entry] = []

    def enter(self, entry: Entry) -> None:
        if not self.entries:
            asyncio.get_running_loop().call_later(MOMENT, self.write)
        self.entries.append(entry)

    def write(self) -> None:
        """Tells of all that have been entered since the last time."""
        entries, self.entries = self.entries, []
        found = Counter[tuple[str, str, int]]()
        for entry in entries:
            tell(entry)
            found[entry.method, entry.route, entry.status] += 1
            if not entry.lasting:
                self.telemetry.observe("request_seconds", entry.seconds, route=entry.route)
        for (method, route, status), times in found.items():
            self.telemetry.count("requests", times, method=method, route=route, status=str(status))


def tell(entry: Entry) -> None:
    """Writes it into the access log."""
    client, method, path, route, status, mark, at, seconds, _ = entry
    if access.isEnabledFor(logging.INFO):  # what ``info`` does, less the search for who called it
        client, took = client or "-", round(1000 * seconds, 1)
        told = (client, method, path if path.isprintable() else quote(path), status, took, mark)
        fields = {"client": client, "method": method, "path": path, "route": route, "status": status, "ms": took, "request_id": mark}
        line = access.makeRecord(access.name, logging.INFO, __file__, 0, LINE, told, None, extra={"fields": fields})
        line.created, line.msecs = at, int(1000 * (at % 1))
        access.handle(line)
