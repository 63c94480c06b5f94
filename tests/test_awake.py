"""Cores that are kept from sleeping: what the kernel is told, and when."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from api.engine.awake import ANY, DEVICE, LIGHT, POLL, Awake
from tests.serving import serve, write_config
from tests.tiny import tiny_precure


def told(path: Path) -> int:
    (latency,) = struct.unpack("=i", path.read_bytes())
    return int(latency)


def test_cores_may_sleep_again_when_nobody_has_asked_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "latency"
    path.write_bytes(struct.pack("=i", ANY))

    async def act() -> None:
        awake = Awake(0.2, path)
        assert told(path) == ANY
        for _ in range(6):
            awake.stir()
            assert told(path) in (POLL, LIGHT)
            await asyncio.sleep(0.08)
        await asyncio.sleep(0.4)
        assert told(path) == ANY
        awake.stir()
        assert told(path) in (POLL, LIGHT)

    asyncio.run(act())


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_nothing_depends_on_it(tmp_path: Path, seconds: float) -> None:
    trouble: list[object] = []

    async def act() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        Awake(seconds, tmp_path / "there is none").stir()
        os.mkfifo(tmp_path / "no file")
        reader = os.open(tmp_path / "no file", os.O_RDONLY | os.O_NONBLOCK)
        refusing = Awake(seconds, tmp_path / "no file")  # cannot be written to at a place
        refusing.stir()
        refusing.stir()
        await asyncio.sleep(0.3)
        os.close(reader)

    asyncio.run(act())
    assert not trouble


@pytest.mark.skipif(not os.access(DEVICE, os.W_OK), reason=f"{DEVICE} is not for this user")
def test_a_request_keeps_cores_awake(tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    tiny_precure(file)
    with serve(write_config(tmp_path, {"tiny": {"file": str(file)}}, {"engine": {"awake": 30.0, "linger": 0.2}})) as server:
        assert server.client.post("/tiny/generate?seed=1").status_code == 200
        assert told(DEVICE) in (POLL, LIGHT)
