"""Connections end when their clients owe the rest of a request and nothing comes; whoever waits for the server is left alone.

Time passes here when a test says so: it has each connection looked at as its timer would.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from api.errors import Cancelled
from api.waiting import until_gone
from guni.protocol import Protocol
from tests.faults import wait_for
from tests.serving import ROOT

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = b"x" * 50_000_000  # more than the kernel keeps for a client
UPLOAD = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"


class Known(Protocol):
    """The connections of a test, whose timers never ring."""

    period = 3600.0
    made: list[Known]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made.append(self)


class Site:
    """A server and what its routes wait for."""

    def __init__(self) -> None:
        self.protocol: type[Known] = type("Known", (Known,), {"made": []})
        self.go_on = threading.Event()
        self.cancelled = self.asked = 0
        routes = [
            Route("/full", self.full),
            Route("/size", self.size, methods=["POST"]),
            Route("/no", self.no, methods=["POST"]),
            Route("/events", self.events),
            Route("/big", self.big),
            Route("/late", self.late, methods=["GET", "POST"]),
            Route("/work", self.work),
            WebSocketRoute("/echo", self.echo),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes, lifespan=self.live),
            port=0,
            http=self.protocol,
            ws="websockets-sansio",
            timeout_keep_alive=3600,
            log_config=None,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    @contextlib.asynccontextmanager
    async def live(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"turn_away": self.turn_away}

    def turn_away(self, method: bytes, target: bytes, headers: object, client: str | None) -> tuple[int, bytes] | None:
        self.asked += 1
        return (503, b"content-length: 4\r\n\r\nfull") if target == b"/full" else None

    async def full(self, request: Request) -> Response:
        return PlainTextResponse("not full")

    async def size(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def no(self, request: Request) -> Response:
        return PlainTextResponse("no")

    async def waited(self) -> None:
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)

    async def events(self, request: Request) -> Response:
        async def tell() -> AsyncIterator[str]:
            yield "one"
            await self.waited()
            yield "two"

        return StreamingResponse(tell())

    async def big(self, request: Request) -> Response:
        return Response(BIG)

    async def late(self, request: Request) -> Response:
        await self.waited()
        return await self.size(request)

    async def work(self, request: Request) -> Response:
        """What routes do that compute: they are cancelled when their client leaves."""
        line = request.scope["extensions"]["line"]["client"]
        try:
            await until_gone(line, request.receive, self.waited())  # type: ignore[arg-type]
        except Cancelled:
            self.cancelled += 1
            raise ConnectionAbortedError from None
        return PlainTextResponse("worked")

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    @property
    def connections(self) -> list[Known]:
        return list(self.protocol.made)

    def connect(self) -> tuple[socket.socket, Known]:
        """A client, and the server's end of it."""
        known = len(self.connections)
        client = socket.create_connection(self.server.servers[0].sockets[0].getsockname(), timeout=60)
        wait_for(lambda: len(self.connections) > known, "it is connected")
        return client, self.connections[-1]

    def pass_time(self, periods: int = 2) -> None:
        for _ in range(periods):
            done = threading.Event()
            self.connections[0].loop.call_soon_threadsafe(self.ring, done)
            assert done.wait(60)

    def ring(self, done: threading.Event) -> None:
        for connection in self.connections:
            if not connection.timer.cancelled():
                connection.timer.cancel()
                connection.look()
        done.set()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.thread.start()
    try:
        wait_for(lambda: site.server.started, "it serves")
        yield site
    finally:
        site.go_on.set()
        site.server.should_exit = True
        site.thread.join(60)


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got


def ask(client: socket.socket, request: bytes, ending: bytes) -> None:
    """Sends it and waits for the end of the answer."""
    client.sendall(request)
    hear(client, ending)


def hear(client: socket.socket, ending: bytes) -> bytes:
    got = b""
    while not got.endswith(ending):
        piece = client.recv(65536)
        assert piece, f"the server closed after {got!r}"
        got += piece
    return got


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GE", GET[:-2] % b"late", UPLOAD + b"abc"])
def test_a_request_that_never_ends_is_given_up(site: Site, begun: bytes) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(begun)
        wait_for(lambda: connection.pieces > 0 or not begun.endswith(b"abc"), "it has come")
        site.pass_time()
        assert read(client).startswith(b"HTTP/1.1 408 ")
    wait_for(connection.timer.cancelled, "nobody looks any more")


@pytest.mark.parametrize("begun", [b"\r\n", b"GE", GET[:-2] % b"late", UPLOAD + b"abc"])
def test_so_is_the_next_one(site: Site, begun: bytes) -> None:
    """Until its first byte uvicorn counts the seconds."""
    client, connection = site.connect()
    with client:
        ask(client, UPLOAD + b"abcdef", b"\r\n\r\n6")
        wait_for(lambda: connection.timeout_keep_alive_task is not None, "the answer is done")
        site.pass_time(5)
        assert not connection.transport.is_closing()
        client.sendall(begun)
        wait_for(lambda: connection.timeout_keep_alive_task is None and connection.pieces == 1 + begun.endswith(b"abc"), "it has come")
        site.pass_time()
        assert read(client).startswith(b"HTTP/1.1 408 ")


def test_a_byte_now_and_then_does_not_lengthen_a_head(site: Site) -> None:
    client, connection = site.connect()
    with client:
        ask(client, UPLOAD + b"abcdef", b"\r\n\r\n6")
        for byte, url in ((b"GET /", b"/"), (b"a", b"/a")):
            client.sendall(byte)
            wait_for(lambda url=url: connection.url == url, "it has come")  # type: ignore[misc]
            site.pass_time(1)
        assert read(client).startswith(b"HTTP/1.1 408 ")


def test_a_steady_upload_is_taken_however_long_it_takes(site: Site) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(UPLOAD)
        for count, letter in enumerate(b"abcdef", 1):
            client.sendall(bytes([letter]))
            wait_for(lambda count=count: connection.pieces == count, "it has come")  # type: ignore[misc]
            site.pass_time(1)
        hear(client, b"\r\n\r\n6")


def test_an_upload_goes_on_after_its_answer(site: Site) -> None:
    """As to a server that says that it is busy; the client may not look before it has said all. Then the connection is as good as any."""
    client, connection = site.connect()
    with client:
        ask(client, UPLOAD.replace(b"/size", b"/no"), b"no")
        for count, letter in enumerate(b"abcdef", 1):
            client.sendall(bytes([letter]))
            wait_for(lambda count=count: connection.pieces == count, "it has come")  # type: ignore[misc]
            site.pass_time(1)
        ask(client, UPLOAD + b"abcdef", b"\r\n\r\n6")


def test_whoever_waits_for_the_server_is_left_alone(site: Site) -> None:
    """For an answer that takes long, for more of a stream, and for an application that does not read the upload yet."""
    big = b"x" * 8_000_000
    clients = [site.connect() for _ in range(3)]
    (late, _), (events, _), (upload, reading) = clients
    late.sendall(GET % b"late")
    ask(events, GET % b"events", b"one\r\n")
    head = b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(big)
    sending = threading.Thread(target=upload.sendall, args=(head + big,))
    sending.start()
    wait_for(lambda: reading.flow.read_paused, "as much has come as may")
    wait_for(lambda: clients[0][1].cycle is not None, "it has come")
    site.pass_time(5)
    site.go_on.set()
    sending.join(60)
    hear(late, b"\r\n\r\n0")
    hear(events, b"two\r\n0\r\n\r\n")
    hear(upload, b"\r\n\r\n8000000")
    for client, _ in clients:
        client.close()


def test_an_answer_that_nobody_reads_is_given_up(site: Site) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(GET % b"big")
        wait_for(lambda: connection.cycle is not None and connection.cycle.response_complete, "all is written")
        time.sleep(0.5)  # the kernel takes what it will
        assert connection.unread()
        site.pass_time()
        wait_for(connection.timer.cancelled, "nobody looks any more")
        with contextlib.suppress(ConnectionResetError):
            assert len(read(client)) < len(BIG)


def test_a_slow_reader_is_left_alone(site: Site) -> None:
    """Between two looks it reads far less than what the kernel waits for before it takes more."""
    client, connection = site.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    with client:
        client.sendall(GET % b"big")
        _, _, body = client.recv(1000).partition(b"\r\n\r\n")
        got = len(body)
        for _ in range(20):
            start, unread = got, connection.unread()
            while got < start + 100_000:
                got += len(client.recv(100_000))
            wait_for(lambda unread=unread: connection.unread() != unread, "the server has seen it")  # type: ignore[misc]
            site.pass_time(1)
        while got < len(BIG):
            got += len(client.recv(1 << 20))


def test_a_websocket_is_left_alone(site: Site) -> None:
    host, port = site.server.servers[0].sockets[0].getsockname()
    with connect(f"ws://{host}:{port}/echo") as client:
        site.pass_time(5)
        client.send("still here")
        assert client.recv(timeout=60) == "still here"


def test_it_needs_nothing_of_gunicorn() -> None:
    program = "import sys; sys.modules.update(gunicorn=None, uvicorn_worker=None); import guni.protocol"
    done: subprocess.CompletedProcess[Any] = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_an_answer_comes_in_one_piece(site: Site) -> None:
    """Whoever waits for it is woken once: a head by itself would be there before its body in some of so many answers."""
    client, _ = site.connect()
    with client:
        for _ in range(200):
            client.sendall(UPLOAD + b"abcdef")
            assert client.recv(65536).endswith(b"\r\n\r\n6")


def test_the_head_of_a_stream_does_not_wait_for_its_body(site: Site) -> None:
    client, _ = site.connect()
    with client:
        ask(client, GET % b"events", b"3\r\none\r\n")


@pytest.mark.parametrize("count", [1, 2])
def test_work_is_cancelled_when_its_client_leaves(site: Site, count: int) -> None:
    """A second request on the same connection is not begun before the first one's answer."""
    client, connection = site.connect()
    with client:
        client.sendall(count * (GET % b"work"))
        wait_for(lambda: bool(connection.line.told), "it works")
    wait_for(lambda: site.cancelled == 1 and not connection.line.told, "it is cancelled")


def test_work_that_is_done_is_answered(site: Site) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(GET % b"work")
        wait_for(lambda: bool(connection.line.told), "it works")
        site.go_on.set()
        hear(client, b"worked")
        assert not connection.line.told
    assert site.cancelled == 0


FULL = GET % b"full"


def test_who_asks_right_behind_a_refusal_waits_as_long_as_it_takes(site: Site) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(FULL + GET % b"late")
        hear(client, b"full")
        wait_for(lambda: connection.cycle is not None, "the next one is at work")
        assert connection.timeout_keep_alive_task is None
        site.go_on.set()
        hear(client, b"\r\n\r\n0")


def test_who_is_turned_away_may_ask_again(site: Site) -> None:
    client, connection = site.connect()
    with client:
        for _ in range(3):
            client.sendall(FULL)
            answer = hear(client, b"full")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\ndate: " in answer
            wait_for(lambda: connection.timeout_keep_alive_task is not None, "the seconds until the next request are counted")
            ask(client, UPLOAD + b"abcdef", b"\r\n\r\n6")
        client.sendall(FULL + UPLOAD + b"abcdef" + FULL)
        answers = b""
        while answers.count(b"full") < 2:
            answers += hear(client, b"full")
        assert answers.startswith(b"HTTP/1.1 503 ")
        assert answers.index(b"\r\n\r\nfull") < answers.index(b"\r\n\r\n6") < answers.index(b"\r\n\r\nnot full")
    assert site.server.server_state.total_requests == 9


def test_nobody_is_turned_away_before_an_earlier_request_is_answered(site: Site) -> None:
    client, connection = site.connect()
    with client:
        client.sendall(GET % b"late" + FULL)
        wait_for(lambda: connection.cycle is not None, "it has come")
        site.go_on.set()
        answers = hear(client, b"full")
        assert answers.index(b"\r\n\r\n0") < answers.index(b"not full")
    assert site.asked == 1


def test_whoever_does_not_read_refusals_is_not_read_either(site: Site) -> None:
    """Else they would pile up in memory, from however many requests come in."""
    count, answered, last = 60_000, 0, b""
    client, connection = site.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    with client:
        sending = threading.Thread(target=client.sendall, args=(count * FULL,))
        sending.start()
        wait_for(lambda: connection.flow.write_paused or connection.flow.read_paused, "it is held up")
        time.sleep(0.5)
        assert connection.transport.get_write_buffer_size() < 1_000_000
        while answered < count:
            piece = client.recv(1 << 20)
            answered += (last + piece).count(b"full")
            last = piece[-3:]
        sending.join(60)


def test_a_worker_that_leaves_hangs_up_behind_a_refusal(site: Site) -> None:
    client, connection = site.connect()
    with client:
        ask(client, FULL, b"full")
        connection.loop.call_soon_threadsafe(connection.shutdown)
        wait_for(lambda: connection.leaving, "it leaves")
        client.sendall(FULL)
        assert b"connection: close" in read(client)


@pytest.mark.parametrize("head", [b"GET /full HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", FULL[:-2] + b"Connection: close\r\n\r\n"])
def test_only_who_may_stay_is_turned_away(site: Site, head: bytes) -> None:
    client, _ = site.connect()
    with client:
        client.sendall(head)
        assert read(client).endswith(b"not full")


def test_a_head_that_does_not_end_is_given_up_behind_a_refusal(site: Site) -> None:
    client, connection = site.connect()
    with client:
        ask(client, FULL, b"full")
        site.pass_time(5)
        client.sendall(b"GE")
        wait_for(lambda: connection.timeout_keep_alive_task is None, "it has come")
        site.pass_time()
        assert read(client).startswith(b"HTTP/1.1 408 ")
