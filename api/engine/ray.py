"""The models of a Ray cluster, as a web worker sees them: each is a Ray Serve deployment, asked by streaming calls.

Ray chooses the replica, and holds requests back while there is none. What was lost with a replica is sent once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from typing import Any

from msgspec.structs import replace

from api.conf import Config
from api.engine.transport import DEATHS, Transport, Watch
from api.engine.wire import Done, Failed, Hello, Picture, Progress, Started, Submit, pack, rebuild, unpack_all
from api.errors import Busy, ConfigError, Expired, NotReady, Poisonous, ServerError
from api.models.base import Info

try:
    import ray
    from ray import serve
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.serve.context import _set_global_client
    from ray.serve.exceptions import BackPressureError, RayServeException
except ModuleNotFoundError as error:
    raise ConfigError(f"cluster.engine: {error.name} is not installed; pip install -r requirements-cluster.txt") from None

log = logging.getLogger(__name__)
LOOK, LONGEST_WAIT = 0.1, 2.0
PATIENCE = 5.0  # seconds in which a question is answered
SILENCE = 10.0  # seconds without a word after which a replica counts as lost, and a model as not ready
connecting = threading.Lock()


def build(config: Config) -> dict[str, Transport]:
    return {model_id: RayEngine(config, model_id) for model_id in config.models}


def app_name(config: Config, model_id: str) -> str:
    """A model's application in the cluster."""
    return f"{config.cluster.name}.{model_id}"


def connect(config: Config) -> None:
    """Connects this process to the cluster, once. Raises ``ConfigError``."""
    with connecting:
        if ray.is_initialized():
            return
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            if config.cluster.address:  # Ray itself would try for minutes
                host, _, port = config.cluster.address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
            ray.init(address=config.cluster.address or "auto", log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"cluster.address: there is no Ray cluster: {error}") from None


def forget(response: Any) -> None:
    """Cancels a call. Ray says here what has become of one that has just failed, which nobody needs to know any more."""
    with contextlib.suppress(RayError, RayServeException):
        response.cancel()


def is_cancelled() -> bool:
    """Whether somebody has cancelled this task; Ray raises ``CancelledError`` also when a replica ends before its work does."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Lost(Exception):  # noqa: N818
    """The replica is gone with the request; ``begun`` if it was being computed."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun


class RayEngine(Transport):
    """One model in the cluster; what an ``Engine`` is for a device."""

    def __init__(self, config: Config, model_id: str) -> None:
        super().__init__(config, app_name(config, model_id), {model_id})
        self.model_id = model_id
        self.handle: Any = None
        self.reached = asyncio.Event()  # set when there is a handle
        self.heard = -SILENCE  # when a replica spoke last
        self.keeper: asyncio.Task[None] | None = None

    @property
    def linked(self) -> bool:
        return time.monotonic() < self.heard + SILENCE

    def open(self) -> None:
        self.keeper = asyncio.create_task(self.keep())

    async def close(self) -> None:
        """The connection to the cluster is the process's and stays."""
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        if self.handle is not None:
            await self.handle.shutdown_async()

    async def info(self, model_id: str) -> Info:
        """What the model is; waits for the first word of a replica. Raises ``NotReady`` if there is none to wait for."""
        while model_id not in self.infos:
            if self.trouble:
                raise NotReady("the model is not deployed", retry_after=LONGEST_WAIT)
            await self.news.wait()
        return self.infos[model_id]

    async def ask(self, submit: Submit, watch: Watch | None, patience: float) -> Picture:
        try:
            async with asyncio.timeout(patience):
                return await self.insist(submit, watch)
        except TimeoutError:
            raise Expired() from None

    async def insist(self, submit: Submit, watch: Watch | None) -> Picture:
        """Sends a request again when its replica is lost; by itself, if it may have been the reason."""
        await self.reached.wait()
        deaths, wait = 0, LOOK
        while True:
            try:
                return await self.attempt(submit, watch)
            except Lost as lost:
                deaths += lost.begun
                submit = replace(submit, alone=deaths > 0)
            if deaths >= DEATHS:
                log.error("a request for %s was being computed at %d deaths of replicas and is refused", self.model_id, deaths)
                raise Poisonous()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def attempt(self, submit: Submit, watch: Watch | None) -> Picture:
        """Raises ``Lost``, or what the replica says of the job."""
        # Clocks of hosts differ: the replica is told how long is left.
        response = self.handle.run.remote(pack(replace(submit, deadline=submit.deadline - time.monotonic())))
        frames, begun = aiter(response), False
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    found = await anext(frames)
                self.heard = time.monotonic()
                for message in unpack_all(found):
                    match message:
                        case Done(picture=picture):
                            return picture
                        case Failed():
                            raise rebuild(message)
                        case Started() | Progress():
                            begun = True
                            if watch is not None:
                                watch(message)
        except BackPressureError:
            raise Busy() from None
        except TimeoutError:
            # Nothing tells that a host has lost its power or its wire: the replica would have said that it lives.
            forget(response)
            log.warning("no word from a replica of %s", self.model_id)
        except StopAsyncIteration:
            log.warning("a replica of %s ended without an answer", self.model_id)
        except RayTaskError as error:
            log.error("the replica of %s failed", self.model_id, exc_info=error)
            raise ServerError() from None
        except (RayError, RayServeException) as error:
            log.warning("a replica of %s is lost: %s", self.model_id, type(error).__name__)
        except asyncio.CancelledError:
            if is_cancelled():
                forget(response)
                raise
        raise Lost(begun)

    # Knowing what there is.

    async def keep(self) -> None:
        wait = LOOK
        while True:
            try:
                if not self.linked:
                    await self.renew()
                async with asyncio.timeout(PATIENCE):
                    (hello,) = unpack_all(await self.handle.options(method_name="hello", stream=False).remote())
                self.welcome(hello)
            except (RayError, RayServeException, TimeoutError):
                self.miss(None)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                self.miss(None)
            except ConfigError as error:
                self.miss(str(error))
            except Exception as error:
                self.miss(f"models.{self.model_id}: {type(error).__name__}: {error}")
            wait = min(2 * wait, LONGEST_WAIT)
            await asyncio.sleep(wait)

    async def renew(self) -> None:
        """Takes a new handle: if Serve was ended and started again meanwhile, an old one leads nowhere for ever."""
        old, self.handle = self.handle, await asyncio.to_thread(self.find)
        self.reached.set()
        if old is not None:
            await old.shutdown_async()

    def miss(self, trouble: str | None) -> None:
        """No replica has answered."""
        if trouble and trouble != self.trouble:
            log.error(trouble)
        self.trouble = trouble
        if not self.linked:
            self.loading = {self.model_id}
        self.tell()

    def find(self) -> Any:
        """The handle of the model's deployment. Raises ``ConfigError``."""
        connect(self.config)
        try:
            handle = serve.get_app_handle(self.name)
        except RayActorError:
            # Serve keeps the controller that it once found, even if that has ended.
            _set_global_client(None)  # type: ignore[no-untyped-call]
            raise
        except RayServeException:
            raise ConfigError(f"models.{self.model_id}: is not deployed in the Ray cluster: python -m api deploy") from None
        return handle.options(stream=True)

    def welcome(self, hello: Hello) -> None:
        self.infos = {info.id: info for info in hello.infos}
        self.trouble, self.heard, self.loading = None, time.monotonic(), set()
        self.tell()
