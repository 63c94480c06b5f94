"""The gunicorn worker: uvicorn with what this server wants."""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker

from guni import reloading
from guni.protocol import Protocol


class Worker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": Protocol,
        "lifespan": "on",
        # Forwarding headers are read by the application, which knows from the TOML whom to trust.
        "proxy_headers": False,
        "server_header": False,
        "ws_per_message_deflate": False,  # pictures do not get smaller
        "access_log": False,
    }

    def init_process(self) -> None:
        """As long as no worker has started, one that cannot, since the TOML is broken, ends gunicorn; later it is tried again."""
        try:
            super().init_process()
        except SystemExit as end:
            raise SystemExit(1 if end.code == 2 and reloading.noted() else end.code) from end
