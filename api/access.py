"""The access log, and the numbers of requests."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

from api.logs import handle_all
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
    error: str = ""
    """Why it was refused at the door."""


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
        tell(entries)
        answers = Counter((entry.method, entry.route, entry.status) for entry in entries)
        for (method, route, status), times in answers.items():
            self.telemetry.count("requests", times, method=method, route=route, status=str(status))
        for error, times in Counter(entry.error for entry in entries if entry.error).items():
            self.telemetry.count("refusals", times, error=error)
        took = Counter((entry.route, entry.seconds) for entry in entries if not entry.lasting)  # nothing, where many were refused
        for (route, seconds), times in took.items():
            self.telemetry.observe("request_seconds", seconds, times, route=route)


def tell(entries: Iterable[Entry]) -> None:
    """Writes them into the access log."""
    if access.isEnabledFor(logging.INFO):
        # Most of a record is the same for all of them, and costs more than the rest.
        record = access.makeRecord(access.name, logging.INFO, __file__, 0, LINE, (), None)
        handle_all(access, [describe(entry, record) for entry in entries])


def describe(entry: Entry, like: logging.LogRecord) -> logging.LogRecord:
    client, method, path, route, status, mark, at, seconds, *_ = entry
    client, took = client or "-", round(1000 * seconds, 1)
    told = (client, method, path if path.isprintable() else quote(path), status, took, mark)
    fields = {"client": client, "method": method, "path": path, "route": route, "status": status, "ms": took, "request_id": mark}
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = {**like.__dict__, "args": told, "created": at, "msecs": int(1000 * (at % 1)), "fields": fields}
    return record
