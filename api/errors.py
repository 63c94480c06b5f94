"""Every error that can reach a user, as one tree that knows no web framework.

``status`` is the HTTP status the error stands for, ``code`` a stable machine-readable name, and ``detail`` what a
client is told: a text or a JSON object. ``retry_after`` (seconds) is set where trying again makes sense,
and ``headers`` are added to the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

Detail = str | Mapping[str, Any]


class ServerError(Exception):
    """Base of all; as such it means an unexpected failure (500)."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    default: ClassVar[Detail] = "internal error"

    def __init__(self, detail: Detail | None = None, *, retry_after: float | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.detail: Detail = self.default if detail is None else detail
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = headers or {}
        super().__init__(self.detail)


class ConfigError(ServerError):
    """The TOML file or a checkpoint it names cannot be used; the message is for the person who runs the server."""

    code = "config_error"


class BadInput(ServerError):
    """A parameter is out of its bounds."""

    status, code, default = 422, "invalid_parameter", "invalid parameter"


class BadArray(BadInput):
    """An array has the wrong shape or type."""

    code, default = "invalid_array", "invalid array"


class Undecodable(BadInput):
    """Something that should hold an array or a picture cannot be decoded."""

    status, code, default = 415, "unsupported_media", "unsupported array"


class TooLarge(BadInput):
    """A body exceeds the server's limit."""

    status, code, default = 413, "too_large", "request body too large"


class NotAcceptable(BadInput):
    """No picture format that the client accepts is served."""

    status, code, default = 406, "not_acceptable", "no acceptable picture format"


class NotFound(ServerError):
    """Something named by the client does not exist; ``kind`` is the ``type`` in the answer."""

    status, code, default = 404, "not_found", "not found"
    kind: ClassVar[str] = ""

    def __init__(self, name: str | None = None) -> None:
        detail = None
        if name is not None:  # which may hold lone surrogates, as JSON's do
            detail = {"type": self.kind, "name": name.encode(errors="replace").decode(), "msg": f"no such {self.kind}"}
        super().__init__(detail)


class NoSuchModel(NotFound):
    code, kind = "model_not_found", "model"


class NoSuchLabel(NotFound):
    code, kind = "label_not_found", "label"


class NoSuchDirection(NotFound):
    code, kind = "direction_not_found", "direction"


class NoSuchTask(NotFound):
    code, kind = "task_not_found", "task"


class NoSuchBlob(NotFound):
    code, kind = "blob_not_found", "blob"


class NoSuchImage(NotFound):
    code, kind = "image_not_found", "image"


class NoSuchSession(NotFound):
    code, kind = "session_not_found", "session"


class NoSuchCollection(NotFound):
    code, kind = "collection_not_found", "collection"


class NoSuchTag(NotFound):
    code, kind = "tag_not_found", "tag"


class Conflict(ServerError):
    """What should be made exists already and differs: a user's name, a task with the same idempotency key."""

    status, code, default = 409, "conflict", "already exists"


class Unauthorized(ServerError):
    """Who asks is not known: no token, a wrong one, or one that has expired."""

    status, code, default = 401, "invalid_api_key", "not authenticated"

    def __init__(self, detail: Detail | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ServerError):
    status, code, default = 403, "forbidden", "not allowed"


class Blocked(ServerError):
    """The client already has a request at work."""

    status, code, default = 429, "too_many_simultaneous_requests", "too many requests simultaneously"


class RateLimited(ServerError):
    """The client has used up its quota of the window."""

    status, code, default = 429, "rate_limit_exceeded", "hit the rate limit"


class NoAddress(ServerError):
    """A limit needs the client's address and nothing tells it."""

    status, code, default = 502, "address_unknown", "could not determine the client address"


class Busy(ServerError):
    """The server's capacity is used up, or it is draining."""

    status, code = 503, "server_busy"
    default = "the server is too busy and temporarily unavailable"

    def __init__(self, detail: Detail | None = None, *, retry_after: float | None = 1.0, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, retry_after=retry_after, headers=headers)


class NotReady(Busy):
    """The engine or the model is still loading."""

    code, default = "not_ready", "the model is loading"


class Expired(Busy):
    """The request's deadline passed before it was served."""

    code, default = "deadline_exceeded", "the request could not be served in time"


class Cancelled(ServerError):
    """The client left; nobody reads this."""

    status, code, default = 499, "cancelled", "cancelled"


class LeaseLost(Cancelled):
    """The task is this worker's no more: it was cancelled, or given to another worker. Its result is unwanted."""

    code, default = "lease_lost", "the task is no longer this worker's"


class Poisonous(ServerError):
    """The request was being computed at two deaths of the engine and is not tried again."""

    code, default = "engine_failure", "the request could not be computed"


def tree() -> dict[str, type[ServerError]]:
    """All error classes by name, for rebuilding one that another process raised."""
    found: dict[str, type[ServerError]] = {}
    queue: list[type[ServerError]] = [ServerError]
    while queue:
        cls = queue.pop()
        found[cls.__name__] = cls
        queue.extend(cls.__subclasses__())
    return found
