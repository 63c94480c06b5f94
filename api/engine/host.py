"""What serves models on a device, whatever way the jobs come: the lane, the shelf, the encoders, and the word back to who asked."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from api.conf import Config
from api.engine.awake import Awake
from api.engine.codec import Encoding, encode
from api.engine.codec.crew import CREW
from api.engine.lane import Lane, explain
from api.engine.shelf import Shelf
from api.engine.teams import choose_team
from api.engine.turns import Ticket
from api.engine.wire import Bye, Cancel, Done, Hello, Picture, Progress, Return, Started, Submit, fail, pack, preview_steps
from api.errors import ServerError
from api.models.base import Info, Model, Previews
from api.models.jobs import Output, Pixels
from api.telemetry import Telemetry
from api.tracing import Tracing

log = logging.getLogger(__name__)
QUICK = 3 * 128 * 128  # numbers of a picture that is encoded in less than a millisecond


def tune() -> None:
    """Settings of a process that hosts models, made before torch is loaded."""
    # Modules make objects by the hundred thousand, and the collector would look at all of them again and again while they are imported:
    # a fifth of a start. ``settle`` turns it on again.
    gc.disable()
    # The lane's thread takes the interpreter lock back after each kernel: waiting 5 ms for it would cost more than the kernels.
    sys.setswitchinterval(0.0002)
    # OpenMP's threads spin at every barrier, and where encoders or web workers want the same cores they spin on the one that the last
    # thread waits for: measured, a hundredfold slowdown. Not spinning at all costs a lone request as much as its picture. This many
    # turns are some ten microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Else MKL's products depend on where in memory their operands happen to lie, and a restart may change a picture.
    os.environ.setdefault("MKL_CBWR", "AUTO")


def settle() -> None:
    """After the models are loaded: what is there stays, and the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


class Peer(Protocol):
    """A client's end: where messages to it are put, packed or not. It is used on the event loop, unless a host knows better."""

    def send(self, *messages: object) -> None: ...
    def write(self, frames: bytes) -> None: ...


class Request(Ticket):
    """A ticket with the way back: which client asked, under which number, and how the picture is wanted."""

    __slots__ = ("batch", "begun", "came", "encoding", "ended", "id", "peer", "previews", "recipe", "trace")

    def __init__(self, peer: Peer, submit: Submit) -> None:
        super().__init__(submit.job, submit.client, submit.deadline, submit.alone, submit.progress)
        self.peer, self.id = peer, submit.id
        self.encoding, self.recipe, self.previews = submit.encoding, submit.recipe, submit.previews
        self.trace, self.batch = submit.trace, 1
        self.came = self.begun = self.ended = time.time_ns()


class Host:
    """Takes messages from clients on the event loop, feeds the lane, and sends back what the lane tells."""

    def __init__(self, config: Config, device: str, telemetry: Telemetry, tracing: Tracing) -> None:
        self.config, self.device, self.telemetry, self.tracing = config, device, telemetry, tracing
        engine = config.server.engine
        self.shelf = Shelf(self.load_model, self.weigh, int(engine.memory * (1 << 30)), self.tidy)
        self.failures: dict[str, str] = {}
        self.loading = config.devices()[device]
        self.clients: dict[Peer, dict[int, Request]] = {}
        self.lane = Lane(self.shelf, self, max_batch=self.max_batch, max_queue=engine.max_queue, patient=engine.wait)
        self.encoders = ThreadPoolExecutor(engine.encoders, "encoder")
        CREW.cores = engine.threads or CREW.cores
        # Pictures that wait for an encoder hold memory: the device pauses when they pile up.
        self.room = threading.BoundedSemaphore(4 * engine.encoders)
        self.loop = asyncio.get_running_loop()
        self.awake = Awake(engine.awake)
        self.left = asyncio.Event()  # set when nothing more is to be served
        self.draining = False

    def max_batch(self, model_id: str) -> int:
        return self.config.models[model_id].max_batch or self.config.server.engine.max_batch

    # On the event loop: clients come, ask and go.

    def welcome(self, peer: Peer) -> None:
        self.clients[peer] = {}
        peer.send(self.hello())
        if self.draining:
            peer.send(Bye())

    def hello(self) -> Hello:
        return Hello(list(self.shelf.infos.values()), dict(self.failures), list(self.loading))

    def receive(self, peer: Peer, message: Any) -> None:
        match message:
            case Submit():
                self.submit(peer, message)
            case Cancel(id=number):
                if request := self.clients[peer].pop(number, None):
                    self.lane.cancel(request)
            case _:
                raise ValueError(f"clients do not send {type(message).__name__}")

    def submit(self, peer: Peer, message: Submit) -> None:
        if self.draining:
            peer.send(Return(message.id))
            return
        self.awake.stir()
        request = Request(peer, message)
        self.clients[peer][request.id] = request
        try:
            self.lane.submit(request)
        except Exception as error:
            self.failed(request, explain(error))

    def part(self, peer: Peer) -> None:
        for request in list(self.clients.pop(peer).values()):
            self.lane.cancel(request)

    def drain(self) -> None:
        """Takes nothing more and leaves when all accepted work is answered."""
        if not self.draining:
            self.draining = True
            self.tell(Bye())
            self.lane.close()

    def announce(self) -> None:
        """What has changed about the models; who was told ``Bye`` is to look for a successor, and not to come back."""
        if not self.draining:
            self.tell(self.hello())

    def tell(self, message: object) -> None:
        for peer in self.clients:
            peer.send(message)

    # On the lane's threads: what becomes of requests.

    def started(self, batch: Sequence[Ticket]) -> None:
        self.telemetry.count("batches", model=batch[0].job.model)
        self.telemetry.observe("batch_size", len(batch), model=batch[0].job.model)
        now = time.monotonic()  # the loop's own clock stands still between its turns
        for ticket in batch:
            self.telemetry.observe("queue_seconds", now - ticket.arrived, model=ticket.job.model)
        told: dict[Peer, list[int]] = {}
        for request in batch:
            assert isinstance(request, Request)
            request.begun = time.time_ns()
            if not self.note(request) or request.progress or self.lane.is_long(request.job):
                told.setdefault(request.peer, []).append(request.id)
        if told:
            self.post({peer: pack(Started(ids)) for peer, ids in told.items()})

    def note(self, request: Request) -> bool:
        """Whether the client will know of itself, should this process die, that the request was begun."""
        return False

    def progressed(self, ticket: Ticket, index: int, total: int, previews: Previews | None) -> None:
        assert isinstance(ticket, Request)
        if previews is not None and index in preview_steps(total, ticket.previews):
            self.encoders.submit(self.preview, ticket, index, total, previews()[0])
        else:
            self.post({ticket.peer: pack(Progress(ticket.id, index, total))})

    def finished(self, batch: Sequence[Ticket], outputs: Sequence[Output], seconds: float) -> None:
        self.telemetry.observe("batch_seconds", seconds, model=batch[0].job.model)
        pairs = [(request, output) for request, output in zip(batch, outputs, strict=True) if isinstance(request, Request)]
        self.trace([request for request, _ in pairs])
        # A hand-over between threads costs as much as a small PNG, and encoders would take their time from the cores that compute, and the
        # interpreter lock in the middle of their kernels: measured, a fourteenth of the pictures. A GPU is to go on with the next batch.
        if (len(pairs) == 1 or self.device == "cpu") and all(is_quick(*pair) for pair in pairs):
            return self.encode(pairs)
        share = max(1, -(-len(pairs) // self.config.server.engine.encoders))
        for start in range(0, len(pairs), share):
            self.room.acquire()
            self.encoders.submit(self.encode, pairs[start : start + share]).add_done_callback(lambda _: self.room.release())

    def trace(self, batch: Sequence[Request]) -> None:
        """What has become of a batch that was computed."""
        ended, model = time.time_ns(), batch[0].job.model
        links = [request.trace for request in batch if request.trace]
        if links:
            self.tracing.record("batch", batch[0].begun, ended, None, links, model=model, size=len(batch), device=self.device)
        for request in batch:
            request.ended, request.batch = ended, len(batch)

    def failed(self, ticket: Ticket, error: ServerError) -> None:
        assert isinstance(ticket, Request)
        self.post({ticket.peer: pack(fail(ticket.id, error))}, [ticket])

    # On an encoder's thread.

    def encode(self, pairs: Sequence[tuple[Request, Output]]) -> None:
        frames: dict[Peer, bytes] = {}
        for request, output in pairs:
            if not request.abandoned:
                frames[request.peer] = frames.get(request.peer, b"") + self.answer(request, output)
        for request, _ in pairs:
            self.telemetry.count("pictures", model=request.job.model)
        self.post(frames, [request for request, _ in pairs])

    def preview(self, request: Request, index: int, total: int, image: Pixels | None) -> None:
        data = None if image is None else encode(image, Encoding("jpeg"))
        self.post({request.peer: pack(Progress(request.id, index, total, data))})

    def answer(self, request: Request, output: Output) -> bytes:
        begun, since = time.time_ns(), time.monotonic()
        try:
            data = encode(output.image, request.encoding, request.recipe)
        except Exception as error:
            return pack(fail(request.id, explain(error)))
        self.telemetry.observe("encode_seconds", time.monotonic() - since, model=request.job.model)
        if request.trace is not None:
            model = request.job.model
            self.tracing.record("queue", request.came, request.begun, request.trace, model=model)
            self.tracing.record("model", request.begun, request.ended, request.trace, model=model, batch=request.batch)
            self.tracing.record("encode", begun, time.time_ns(), request.trace, model=model, format=request.encoding.mime_type)
        height, width = output.image.shape[:2]
        picture = Picture(
            data=data,
            mime_type=request.encoding.mime_type,
            width=width,
            height=height,
            seed=output.seed,
            label=output.label,
            latent=output.latent,
            styles=output.styles,
            extra=dict(output.extra),
        )
        return pack(Done(request.id, picture))

    # From any thread to the event loop.

    def post(self, frames: Mapping[Peer, bytes], ended: Sequence[Request] = ()) -> None:
        self.loop.call_soon_threadsafe(self.deliver, frames, ended)

    def deliver(self, frames: Mapping[Peer, bytes], ended: Sequence[Request]) -> None:
        for peer, frame in frames.items():
            peer.write(frame)
        for request in ended:
            self.clients.get(request.peer, {}).pop(request.id, None)

    # Threads.

    def load(self) -> None:
        """Loads the models one after the other and tells the clients of each.

        Their libraries too: to import those of one family beside the loading of another makes both wait for the interpreter lock, and all
        was ready a second later.
        """
        from api.models.device import prepare_device, use_cores

        self.lane.cores = prepare_device(self.device, self.config.server.engine.threads)
        if self.device == "cpu":
            self.lane.use = use_cores
            use_cores(1)  # as most pictures are computed: what is warmed up is what is used
        for model_id in list(self.loading):
            try:
                self.shelf.bring(model_id)
                log.info("%s is ready on %s", model_id, self.device)
            except Exception as error:
                self.failures[model_id] = explain(error).args[0] if isinstance(error, ServerError) else f"{type(error).__name__}: {error}"
                log.error("%s cannot be loaded: %s", model_id, self.failures[model_id], exc_info=not isinstance(error, ServerError))
            self.loading = [name for name in self.loading if name != model_id]
            self.loop.call_soon_threadsafe(self.announce)

    def load_model(self, model_id: str) -> Model:
        from api.models.registry import load_model

        model = load_model(self.config, model_id)
        if model_id not in self.lane.teams:
            check = self.config.models[model_id].warmup
            self.lane.teams[model_id] = choose_team(model, self.lane.cores, self.lane.use, check)
        return model

    def weigh(self, info: Info) -> int:
        """Bytes of the model's weights."""
        precision = self.config.models[info.id].precision or self.config.server.engine.precision
        return info.parameters * (4 if self.device == "cpu" or precision == "float32" else 2)

    def tidy(self) -> None:
        from api.models.device import release_memory

        release_memory(self.device)

    def work(self) -> None:
        """The device's first thread: it loads the models, and runs them together with those of the other cores."""
        with leaving_if_lost():
            self.load()
            settle()
            others = [threading.Thread(target=self.compute, name=f"core {i}", daemon=True) for i in range(1, self.lane.cores)]
            for other in others:
                other.start()
            self.lane.run()
            for other in others:
                other.join()
        self.encoders.shutdown()
        self.loop.call_soon_threadsafe(self.left.set)

    def compute(self) -> None:
        with leaving_if_lost():
            self.lane.run(first=False)


def is_quick(request: Request, output: Output) -> bool:
    return output.image.size <= QUICK and request.encoding.mime_type in ("image/png", "image/jpeg")


@contextlib.contextmanager
def leaving_if_lost() -> Iterator[None]:
    """Ends the process at a failure that no model can be served after; the clients start another one."""
    try:
        yield
    except BaseException:
        log.critical("the device is lost; a new process takes over", exc_info=True)
        os._exit(70)
