"""The engine process and its client: shared by workers, started again after death, drained, left by clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import uvloop

from api.conf import Config, load_config
from api.engine.client import Engine, Link, Pending
from api.engine.codec import Encoding
from api.engine.launch import early, launch, launch_early
from api.engine.process import Guest
from api.engine.socket import reach, socket_path
from api.engine.wire import LENGTH, Cancel, Connection, Done, Picture, Submit, pack, unpack, unpack_all
from api.errors import BadArray, BadInput, Expired, NoSuchLabel, Poisonous
from api.models.jobs import Generate, Project, Synthesize
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, write_config

PNG = Encoding("png")
STAYS = 1000.0  # seconds
KILLS = int(os.environ.get("KILLS", "4"))


def configure(folder: Path, linger: float) -> Config:
    tiny_precure(folder / "tiny.safetensors", levels=4)
    models = {"tiny": {"file": "tiny.safetensors", "relative": True, "warmup": False}}
    return load_config(write_config(folder, models, {"engine": {"linger": linger, "max_batch": 8}}))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configure(tmp_path, 0.2)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Of an engine that stays for the next test, for those that do it no harm."""
    found = configure(tmp_path_factory.mktemp("lasting"), STAYS)
    yield found
    for pid in pids(found):
        os.kill(pid, signal.SIGTERM)
    asyncio.run(gone(found))


def with_engines(config: Config, count: int, use: Callable[..., Awaitable[None]]) -> None:
    """Runs ``use`` with so many clients of the configuration's engine, as that many web workers would have."""

    async def main() -> None:
        engines = [Engine(config, "cpu") for _ in range(count)]
        for engine in engines:
            engine.open()
        try:
            async with asyncio.timeout(60 + 20 * KILLS):
                await use(*engines)
        finally:
            for engine in engines:
                await engine.close()
        if config.server.engine.linger < STAYS:
            await gone(config)

    asyncio.run(main())


async def gone(config: Config) -> None:
    """Engines leave after their last client; a test does not end before."""
    for _ in range(500):
        if not pids(config):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the engine stays")


def pids(config: Config) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0] if command else ""
        except OSError:
            continue
        if os.fsencode(config.server.tmp_dir) in command and b"api.engine.process" in command and state != "Z":
            found.append(int(entry.name))
    return found


def generate(engine: Engine, seed: int, client: str = "one", **options: float) -> Awaitable[Picture]:
    return engine.run(Generate(model="tiny", seed=seed), client=client, encoding=PNG, **options)  # type: ignore[arg-type]


def test_workers_share_one_engine_and_get_the_same_bytes(lasting: Config) -> None:
    async def use(*engines: Engine) -> None:
        pictures = await asyncio.gather(*(generate(engine, seed) for engine in engines for seed in range(20)))
        assert len(pids(lasting)) == 1
        for seed in range(20):
            assert len({picture.data for picture in pictures[seed::20]}) == 1
        assert (await engines[0].info("tiny")).width == pictures[0].width

    with_engines(lasting, 3, use)


def test_what_cannot_be_sent_is_its_own_requests_fault(config: Config) -> None:
    async def use(engine: Engine) -> None:
        async def send_too_much() -> None:
            job = Generate(model="tiny", seed=1)
            with pytest.raises(BadInput, match="64 bits"):
                await engine.run(job, client="one", encoding=PNG, recipe={"Size": 10**30})

        waiting = asyncio.create_task(send_too_much())  # there is no engine yet
        await generate(engine, 1)
        await waiting
        await send_too_much()
        (pid,) = pids(config)
        os.kill(pid, signal.SIGKILL)
        assert (await generate(engine, 2)).seed == 2
        assert not engine.pending

    with_engines(config, 1, use)


def test_who_is_closed_before_the_engine_has_spoken_does_not_keep_it(config: Config) -> None:
    async def use(engine: Engine) -> None:
        await generate(engine, 1)
        (pid,) = pids(config)
        os.kill(pid, signal.SIGSTOP)  # an engine whose event loop is busy
        try:
            other = Engine(config, "cpu")
            other.open()
            await asyncio.sleep(0.2)
            await other.close()
        finally:
            os.kill(pid, signal.SIGCONT)
        await generate(engine, 2)
        assert not other.linked

    with_engines(config, 1, use)


def test_the_death_of_a_long_request_is_remembered_however_many_begin_beside_it(config: Config) -> None:
    """The engine's notes hold the last few thousand."""

    async def use(engine: Engine) -> None:
        made = await generate(engine, 1)
        target = np.zeros((made.height, made.width, 3), np.uint8)
        job = Project(model="tiny", seed=1, image=target, steps=1000, starts=1)
        long = asyncio.create_task(engine.run(job, client="one", encoding=PNG))
        while not any(entry.started for entry in engine.pending.values()):
            await asyncio.sleep(0.01)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)

    with_engines(config, 1, use)


def test_a_cpus_cores_encode_small_pictures_themselves(config: Config) -> None:
    """There is a thread for the encoders only once they have had something to do: what takes long, as every WebP does."""

    async def use(engine: Engine) -> None:
        def threads() -> int:
            (pid,) = pids(config)
            return len(list(Path(f"/proc/{pid}/task").iterdir()))

        await generate(engine, 0)
        before = threads()
        await asyncio.gather(*(generate(engine, seed) for seed in range(40)))
        assert threads() == before
        jobs = [Generate(model="tiny", seed=seed) for seed in range(4)]
        await asyncio.gather(*(engine.run(job, client="one", encoding=Encoding("webp")) for job in jobs))
        assert threads() > before

    with_engines(config, 1, use)


def test_the_socket_is_its_users_alone(lasting: Config) -> None:
    async def use(engine: Engine) -> None:
        await generate(engine, 1)
        assert stat.S_IMODE(engine.path.stat().st_mode) == 0o600

    with_engines(lasting, 1, use)


def test_a_long_folder_name_is_no_obstacle(config: Config, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / "run"
    config = config.model_copy(update={"server": config.server.model_copy(update={"tmp_dir": deep})})

    async def use(engine: Engine) -> None:
        assert (await generate(engine, 1)).seed == 1

    assert len(str(socket_path(config, "cpu"))) > 108
    with_engines(config, 1, use)


def test_killed_engines_cost_no_request(config: Config) -> None:
    mark = random.randrange(2**32)
    print("seed", mark)
    dice = random.Random(mark)
    wanted: dict[int, bytes] = {}

    async def use(engine: Engine, other: Engine) -> None:
        for seed in range(10):
            wanted[seed] = (await generate(engine, seed)).data
        stop = asyncio.Event()

        async def client(source: Engine, number: int) -> int:
            made = 0
            while not stop.is_set():
                seed = (number + made) % 10
                assert (await generate(source, seed, str(number))).data == wanted[seed]
                made += 1
            return made

        clients = [asyncio.create_task(client(source, number)) for number in range(4) for source in (engine, other)]
        for _ in range(KILLS):
            await asyncio.sleep(0.5 + dice.random())
            for pid in pids(config):
                os.kill(pid, signal.SIGKILL)
            await generate(engine, 1)
        stop.set()
        assert all(made > 0 for made in await asyncio.gather(*clients))

    with_engines(config, 2, use)


def test_a_request_at_two_deaths_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    send, stopping = Engine.send, [True]

    def stop_and_send(engine: Engine, entry: Pending) -> None:
        """So that the process cannot answer before it is killed."""
        for pid in pids(config) if stopping[0] and engine.link is not None and not engine.loading else ():
            os.kill(pid, signal.SIGSTOP)
        send(engine, entry)

    monkeypatch.setattr(Engine, "send", stop_and_send)

    async def use(engine: Engine) -> None:
        await engine.info("tiny")
        waiting = asyncio.ensure_future(generate(engine, 1))
        await asyncio.sleep(0)
        entry = next(iter(engine.pending.values()))
        for deaths in (1, 2):
            while entry.link is None:
                await asyncio.sleep(0.001)
            stopping[0] = deaths < 2
            entry.started = True  # as if it had been begun in the moment of the engine's death
            for pid in pids(config):
                os.kill(pid, signal.SIGKILL)
            while entry.deaths < deaths:
                await asyncio.sleep(0)
                if waiting.done():
                    break
        with pytest.raises(Poisonous):
            await waiting
        assert entry.submit.alone
        assert (await generate(engine, 2)).seed == 2

    with_engines(config, 1, use)


def test_a_drained_engine_finishes_and_a_new_one_takes_over(config: Config) -> None:
    async def use(engine: Engine) -> None:
        await generate(engine, 0)
        (old,) = pids(config)
        many = [asyncio.ensure_future(generate(engine, seed)) for seed in range(60)]
        await asyncio.sleep(0)
        os.kill(old, signal.SIGTERM)
        more = [asyncio.ensure_future(generate(engine, seed)) for seed in range(60, 80)]
        pictures = await asyncio.gather(*many, *more)
        assert [picture.seed for picture in pictures] == list(range(80))
        assert (await generate(engine, 99)).seed == 99
        assert old not in pids(config)

    with_engines(config, 1, use)


def test_an_engine_that_leaves_while_it_loads_says_nothing_after_its_farewell(config: Config) -> None:
    """Who is told of a model would come back to it, instead of looking for its successor."""
    child, path, heard = launch(config, "cpu"), socket_path(config, "cpu"), b""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60)
        for _ in range(6000):
            with contextlib.suppress(OSError):
                link.connect(reach(path))
                break
            time.sleep(0.01)
        while piece := link.recv(1 << 16):
            if not heard:
                os.kill(child.pid, signal.SIGTERM)  # torch is not imported yet
            heard += piece
    kinds = [type(message).__name__ for message in unpack_all(heard)]
    assert kinds[-1] == "Bye", kinds
    assert "Hello" in kinds


def test_jobs_of_clients_that_leave_never_run(config: Config) -> None:
    async def use(engine: Engine, other: Engine) -> None:
        await generate(engine, 0)
        (pid,) = pids(config)
        os.kill(pid, signal.SIGSTOP)  # nothing is computed while they come and go
        busy = [asyncio.ensure_future(generate(engine, seed, "busy")) for seed in range(100)]
        await asyncio.sleep(0)
        leaving = [asyncio.ensure_future(generate(other, seed, "leaving")) for seed in range(300)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*busy)
        results = await asyncio.gather(*leaving, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert not other.pending

    with_engines(config, 2, use)
    from prometheus_client.parser import text_string_to_metric_families

    from api.telemetry import Telemetry

    text = Telemetry(config.server.tmp_dir, "test").expose().decode()
    made = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model") == "tiny"
    }
    # What the engine began before it had read that its owner had left is done; nothing else.
    assert 101 <= made["stylegan_pictures_total"] <= 101 + 150


def test_errors_come_back_as_themselves(lasting: Config) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(NoSuchLabel):
            await engine.run(Generate(model="tiny", label="x"), client="", encoding=PNG)
        with pytest.raises(BadArray):
            await engine.run(Synthesize(model="tiny", styles=np.zeros((1, 1), np.float32)), client="", encoding=PNG)
        with pytest.raises(Expired):
            await generate(engine, 1, deadline=time.monotonic() - 1)

    with_engines(lasting, 1, use)


def test_a_model_that_cannot_be_loaded_is_told_and_hides_no_other(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "tiny.safetensors", levels=3)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("broken", "tiny")}
    config = load_config(write_config(tmp_path, models, {"engine": {"linger": 0.2}}))

    async def use(engine: Engine) -> None:
        assert (await generate(engine, 1)).seed == 1
        assert "broken" in engine.failures
        assert str(tmp_path) not in engine.failures["broken"] or "broken.safetensors" in engine.failures["broken"]

    with_engines(config, 1, use)


def test_garbage_on_the_socket_ends_only_that_connection(lasting: Config) -> None:
    async def use(engine: Engine) -> None:
        await generate(engine, 1)
        for garbage in (b"\xff" * 64, LENGTH.pack(3) + b"abc", LENGTH.pack(1) + b"\x05", b"\x00\x00"):
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(reach(engine.path))
            stranger.sendall(garbage)
            stranger.close()
        assert (await generate(engine, 2)).seed == 2
        assert len(pids(lasting)) == 1

    with_engines(lasting, 1, use)


def test_a_client_that_reads_slowly_gets_everything_whole_and_once(lasting: Config) -> None:
    """Many threads write to its socket, which takes less than that at a time."""
    count = 1000

    async def use(engine: Engine) -> None:
        wanted = {seed: (await generate(engine, seed)).data for seed in range(4)}
        reader, writer = await asyncio.open_unix_connection(reach(socket_path(lasting, "cpu")), limit=1 << 12)
        for number in range(count):
            job = Generate(model="tiny", seed=number % 4)
            writer.write(pack(Submit(id=number, job=job, client="slow", deadline=time.monotonic() + 60, encoding=PNG)))
        await writer.drain()
        told: list[int] = []
        while len(told) < count:
            await asyncio.sleep(0.0005)
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            message = unpack(await reader.readexactly(length))
            if isinstance(message, Done):
                assert message.picture.data == wanted[message.id % 4]
                told.append(message.id)
        assert sorted(told) == list(range(count))
        writer.close()

    with_engines(lasting, 1, use)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_written_while_something_waits_waits_too(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def use() -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        host = SimpleNamespace(receive=None, part=lambda guest: None, welcome=lambda guest: None, loop=asyncio.get_running_loop())
        _, guest = await host.loop.create_connection(lambda: Guest(host), sock=ours)  # type: ignore[arg-type]
        pieces = [bytes([number]) * 500_000 for number in range(4)]
        guest.write(pieces[0])
        got = theirs.recv(100_000)  # there is room for some of the next one now
        for piece in pieces[1:3]:
            await asyncio.to_thread(guest.write, piece)
        while len(got) < 1_500_000:
            await asyncio.sleep(0)
            got += await asyncio.to_thread(theirs.recv, 1 << 20)
        while guest.waiting or guest.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        small = b"at once"
        guest.write(small)
        assert not guest.waiting
        assert theirs.recv(100) == small
        assert got == b"".join(pieces[:3])
        guest.close()
        while guest.socket is not None:
            await asyncio.sleep(0)
        guest.write(small)  # to nobody
        assert theirs.recv(1) == b""
        theirs.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(use(), 30))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_a_worker_sends_in_one_turn_comes_in_one_piece(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def use() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        def ids() -> list[int]:
            return [message.id for message in unpack_all(theirs.recv(1 << 16))]

        lost = list[Connection]()
        _, link = await asyncio.get_running_loop().create_connection(lambda: Link(lambda *_: None, lost.append), sock=ours)
        try:
            for number in range(3):
                link.send(Cancel(number))
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
            await asyncio.sleep(0.01)
            assert ids() == [0, 1, 2]
            link.send(Cancel(3))
            await asyncio.sleep(0.01)
            assert ids() == [3]
            link.send(Cancel(4), Cancel(5))
            link.close()
            assert ids() == [4, 5]
            while not lost:
                await asyncio.sleep(0)
            link.send(Cancel(6))  # to nobody
            await asyncio.sleep(0.01)
            assert theirs.recv(1) == b""
        finally:
            link.abort()  # uvloop's end waits for connections
            theirs.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(use(), 30))


def test_a_worker_may_send_any_amount_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine cuts off who does not read; a worker that did so would send the same again, and cut itself off for ever."""
    monkeypatch.setattr(Connection, "MAX_UNSENT", 1000)

    async def use() -> None:
        async def survives(kind: type[Connection]) -> bool:
            ours, theirs = socket.socketpair()
            with theirs:
                link = kind(lambda *_: None, lambda _: None)
                transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
                for _ in range(2):
                    link.write(bytes(5_000_000))
                await asyncio.sleep(0.01)
                found = not transport.is_closing()
                transport.abort()
            return found

        assert (await survives(Connection), await survives(Link)) == (False, True)

    asyncio.run(asyncio.wait_for(use(), 30))


def test_frames_survive_any_cut() -> None:
    job = Generate(model="tiny", seed=3, latent=np.arange(4, dtype=np.float32))
    frame = pack(Submit(id=1, job=job, client="c", deadline=1.5, encoding=PNG, recipe={"Seed": 3}))
    got: list[Submit] = []
    connection = Connection(lambda _, message: got.append(message), lambda _: None)
    for index in range(2 * len(frame)):
        connection.data_received((frame * 2)[index : index + 1])
    assert len(got) == 2
    assert isinstance(got[0].job, Generate)
    assert got[0].job.latent is not None
    assert got[0].job.latent.tolist() == [0, 1, 2, 3]
    for words in ([], ["Path", "/etc/passwd"], ["Cancel", "one"], ["Cancel"], msgspec.msgpack.Ext(5, b""), {"id": 1}):
        with pytest.raises(ValueError, match=r"Expected|Invalid"):
            unpack(msgspec.msgpack.encode(words))

    def submit(*array: object) -> Submit:
        job = ["Generate", "tiny", 3, None, 1.0, None, 1.0, array]
        return unpack(msgspec.msgpack.encode(["Submit", 1, job, "c", 1.5, ["png"]]))  # type: ignore[no-any-return]

    assert submit("<f4", [2], bytes(8)).job.model == "tiny"
    for array in (("|O", [1], bytes(8)), ("<f4", [3], bytes(8)), ("<f4", [1 << 40], b""), ("no type", [1], b"1"), ("<f4", [1])):
        with pytest.raises(ValueError, match=r"\$\[2\]\[7\]"):
            submit(*array)


def test_an_engine_that_nobody_comes_to_leaves(config: Config) -> None:
    """Who started it may be dead before it listens."""
    command = [sys.executable, "-m", "api.engine.process", "cpu", str(socket_path(config, "cpu"))]
    config.server.tmp_dir.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, input=config.model_dump_json().encode(), check=True, timeout=120, cwd=ROOT)


def test_an_engine_may_be_started_before_its_client(config: Config) -> None:
    launch_early(config)
    (child,) = early.values()

    async def use(engine: Engine) -> None:
        picture = await engine.run(Generate(model="tiny", seed=1), client="c", encoding=PNG)
        assert picture.seed == 1
        assert pids(config) == [child.pid], "the one that was there already, and no other"
        assert not early, "the next is a new one"
        launch_early(config)
        assert not early, "what serves is not started again"

    with_engines(config, 1, use)


def test_an_engine_that_cannot_be_started_is_tried_again(config: Config) -> None:
    folder = config.server.tmp_dir
    folder.touch()  # a file stands where the socket's folder is to be

    async def use(engine: Engine) -> None:
        while engine.trouble is None:
            await asyncio.sleep(0.01)
        assert "cannot be started" in engine.trouble
        folder.unlink()
        picture = await engine.run(Generate(model="tiny", seed=1), client="c", encoding=PNG)
        assert picture.seed == 1

    with_engines(config, 1, use)
