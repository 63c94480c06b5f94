"""HTTP/1.1 as uvicorn speaks it, with a few things mended.

A worker that leaves does not hang up on a client it has just accepted, and it ends the event streams, which have no end of their own,
also where it leaves of itself because it has served its share. No client keeps a connection by sending its request for ever. An answer
is sent in one piece, where uvicorn wakes the client for its head and again for its body. Requests hear at once that their client has
left, without a task of each that waits for it. And what the application refuses by its head alone is refused without a task, too.

`python main.py` speaks it as gunicorn's workers do: nothing of gunicorn is imported here.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.waiting import Line

PATIENCE = 1.0  # seconds that a leaving worker waits for the request of a new connection
GIVEN_UP = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Gathering:
    """A transport that sends together what is written in one turn of the event loop, or until ``flush``."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop = transport, loop
        self.pieces: list[bytes] = []
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.abort, self.set_protocol = transport.abort, transport.set_protocol

    def write(self, data: bytes) -> None:
        if not self.pieces:
            self.loop.call_soon(self.flush)
        self.pieces.append(data)

    def flush(self) -> None:
        pieces, self.pieces = self.pieces, []
        if pieces and not self.transport.is_closing():  # uvloop's raises what is written to one that is closed
            self.transport.writelines(pieces)

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.pieces)) + self.transport.get_write_buffer_size()


class Protocol(HttpToolsProtocol):
    """Uvicorn closes a connection without a request at once. The request may be on its way, and its client would see a reset.

    And uvicorn waits for ever for the rest of a request, and for its answer to be read. Here somebody looks now and then, which costs
    requests nothing.
    """

    # Seconds: a head that takes longer, or a client that sends or reads nothing for so long where it should, is given up within two.
    period = 30.0
    leaving = False
    pieces = 0  # of bodies that have come, and requests turned away: something has happened
    greeting: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.gathering = Gathering(transport, self.loop)  # type: ignore[arg-type]
        super().connection_made(self.gathering)  # type: ignore[arg-type]
        self.line = Line(self.flow.resume_reading)
        self.seen = self.awaited()
        self.timer = self.loop.call_later(self.period, self.look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)
        self.line.end()

    def handle_websocket_upgrade(self) -> None:
        self.timer.cancel()  # the connection is another protocol's now
        self.transport = self.gathering.transport
        super().handle_websocket_upgrade()

    def on_body(self, body: bytes) -> None:
        self.pieces += 1
        super().on_body(body)

    def unread(self) -> tuple[int, int] | None:
        """Bytes that wait for the client to read, if there are any here: here, and in the kernel, which takes them by the megabyte."""
        here = self.transport.get_write_buffer_size()
        if not here:
            return None
        try:
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # it is gone
            return None
        return here, int.from_bytes(queued, sys.byteorder)

    def awaited(self) -> object:
        """What the client has yet to read or to send; equal to what it was as long as it does nothing of that. ``None`` while it waits."""
        if unread := self.unread():
            return unread
        if self.cycle is None or self.cycle.response_complete:
            waiting = self.timeout_keep_alive_task is None  # else uvicorn counts the seconds between two requests
        else:
            waiting = self.cycle.more_body and not self.flow.read_paused
        return (self.cycle, self.pieces) if waiting else None

    def look(self) -> None:
        """Gives up a client of which we still await what we did when we looked the last time."""
        awaited = self.awaited()
        if awaited is None or awaited != self.seen:
            self.seen = awaited
            self.timer = self.loop.call_later(self.period, self.look)
        elif self.unread():
            self.transport.abort()  # to close it would be to wait for the client
        elif not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_started == self.cycle.response_complete:  # not in the middle of an answer
                self.transport.write(GIVEN_UP)
            self.transport.close()

    def on_response_complete(self) -> None:
        self.gathering.flush()
        super().on_response_complete()

    def shutdown(self) -> None:
        if server := self.app_state.get("server"):
            server.hang_up()
        if self.cycle is None and not self.leaving:
            self.leaving = True
            self.loop.call_later(PATIENCE, super().shutdown)
        else:
            super().shutdown()

    def turn_away(self) -> bool:
        """Whether the request is refused by its head alone, by an application whose lifespan left a ``turn_away`` in its state."""
        ask = self.app_state.get("turn_away")
        free = self.cycle is None or self.cycle.response_complete
        if ask is None or self.leaving or not free or self.flow.write_paused:
            return False
        if not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1":
            return False  # whoever is served so hears of the connection's end, too
        refusal = ask(self.parser.get_method(), self.url, self.headers, self.client[0] if self.client else None)
        if refusal is None:
            return False
        self.pieces += 1
        status, rest = refusal
        # The answer to the request before has gone as a whole: nothing is gathered that would have to go first.
        self.gathering.transport.write(STATUS_LINE[status] + self.default_headers() + rest)
        self.on_response_complete()
        return True

    def default_headers(self) -> bytes:
        """What uvicorn says in every answer; it changes once a second."""
        fields, text = Protocol.greeting
        if fields is not self.server_state.default_headers:
            fields = self.server_state.default_headers
            text = b"".join(b"%b: %b\r\n" % field for field in fields)
            Protocol.greeting = fields, text
        return text

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False  # the rest is for who is let in

    def on_message_complete(self) -> None:
        if self.cycle is not None:  # else nothing but refusals were on this connection
            super().on_message_complete()

    def on_headers_complete(self) -> None:
        if self.turn_away():
            return
        url, headers, expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expected
        self.scope["headers"] = headers
        self._unset_keepalive_if_required()  # of one turned away before it in the same piece
        super().on_headers_complete()
        self.scope["extensions"] = {"line": {"client": self.line}}
        if self.leaving and self.cycle is not None:
            self.cycle.keep_alive = False
