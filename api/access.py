"""The access log, and the numbers of requests."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import NamedTuple

from api.telemetry import Telemetry

access = logging.getLogger("api.access")
LINE = '%s "%s %s" %d %.1f ms %s'
MOMENT = 0.05  # seconds


class Answer(NamedTuple):
    """What there is to tell of one."""

    client: str | None
    method: str
    path: str
    route: str
    status: int
    mark: str
    """The request's id."""
    at: float
    """When it was given, in seconds of Unix time."""
    seconds: float = 0.0
    """That it took."""
    lasting: bool = False
    """It ended when its client left: how long it took says nothing of the server."""


class Book:
    """Logs and counts answers, those of a moment in one go: each by itself, between networks, would take several times as long."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.answers: list[Answer] = []

    def enter(self, answer: Answer) -> None:
        if not self.answers:
            asyncio.get_running_loop().call_later(MOMENT, self.write)
        self.answers.append(answer)

    def write(self) -> None:
        """Tells of all that have been entered since the last time."""
        answers, self.answers = self.answers, []
        found = Counter[tuple[str, str, int]]()
        for answer in answers:
            tell(answer)
            found[answer.method, answer.route, answer.status] += 1
            if not answer.lasting:
                self.telemetry.observe("request_seconds", answer.seconds, route=answer.route)
        for (method, route, status), times in found.items():
            self.telemetry.count("requests", times, method=method, route=route, status=str(status))


def tell(answer: Answer) -> None:
    """Writes it into the access log."""
    client, method, path, route, status, mark, at, seconds, _ = answer
    if access.isEnabledFor(logging.INFO):  # what ``info`` does, less the search for who called it
        client, took = client or "-", round(1000 * seconds, 1)
        told = (client, method, path, status, took, mark)
        fields = {"client": client, "method": method, "path": path, "route": route, "status": status, "ms": took, "request_id": mark}
        line = access.makeRecord(access.name, logging.INFO, __file__, 0, LINE, told, None, extra={"fields": fields})
        line.created, line.msecs = at, int(1000 * (at % 1))
        access.handle(line)
