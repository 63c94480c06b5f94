"""What the processes write into their logs: lines for people, or JSON objects for programs."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

TOKEN = re.compile(r"([?&]token=)[^&\s]+")
LINES = "%(asctime)s %(levelname)s %(message)s"
OTHERS = ("uvicorn", "uvicorn.error", "gunicorn.error")
"""Loggers of those who serve us; their lines get the same form."""


class JsonFormatter(logging.Formatter):
    """One object a line. What a call gives as ``extra={"fields": …}`` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class Discretion(logging.Filter):
    """Takes tokens out of the URLs that uvicorn writes into its log when a WebSocket opens."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(TOKEN.sub(r"\1…", value) if isinstance(value, str) else value for value in record.args)
        return True


DISCRETION = Discretion()


def attach_loggers(parent: str | None, form: str) -> None:
    """Puts the server's loggers below the one that the TOML names, so that they share its handlers and level. Twice is once."""
    logging.getLogger("uvicorn.error").addFilter(DISCRETION)
    own = logging.getLogger("api")
    if parent is not None:
        own.parent = logging.getLogger(parent)
    elif not logging.getLogger().handlers and not own.handlers:
        own.addHandler(logging.StreamHandler())
        own.setLevel(logging.INFO)
    for handler in own.handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(LINES))
    if form == "json":
        for name in filter(None, (parent, *OTHERS)):
            for handler in logging.getLogger(name).handlers:
                handler.setFormatter(JsonFormatter())


def attach_engine(form: str) -> None:
    """The same for an engine process, whose logs are its own."""
    (handler,) = logging.getLogger().handlers
    if form == "json":
        handler.setFormatter(JsonFormatter())
