"""HTTP/1.1 as uvicorn speaks it, with two things mended.

A worker that leaves does not hang up on a client it has just accepted, and it ends the event streams, which have no end of their own,
also where it leaves of itself because it has served its share.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE = 1.0  # seconds that a leaving worker waits for the request of a new connection


class Protocol(HttpToolsProtocol):
    """Uvicorn closes a connection without a request at once. The request may be on its way, and its client would see a reset."""

    leaving = False

    def shutdown(self) -> None:
        if server := self.app_state.get("server"):
            server.hang_up()
        if self.cycle is None and not self.leaving:
            self.leaving = True
            self.loop.call_later(PATIENCE, super().shutdown)
        else:
            super().shutdown()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.leaving and self.cycle is not None:
            self.cycle.keep_alive = False
