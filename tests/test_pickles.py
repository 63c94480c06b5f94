"""Checkpoints that are traps: nothing in them runs, each is refused and told why, and none costs much."""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.errors import ConfigError
from api.models.formats import nvidia, rosinality, tensorflow
from api.models.formats.ndarrays import numpy_names
from api.models.formats.pickles import COMMON, Budget, load
from tests.hostile import corpus, pickling

MEMORY = 96 << 20
SECONDS = 30.0
CANARY = "canary"

EVENTS = {"exec", "compile", "import", "open", "marshal.loads", "pickle.find_class", "code.__new__", "function.__new__"}
MODULES = {"os", "subprocess", "socket", "ctypes", "shutil", "urllib", "webbrowser", "ftplib", "pty", "tempfile"}

Seen = list[tuple[str, str]]
watched: dict[str, Any] = {"seen": None, "path": ""}


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what a reader must never do. Installed once: Python keeps audit hooks for ever."""
    seen: Seen | None = watched["seen"]
    if seen is None or (event == "open" and str(arguments[0]) == watched["path"]):
        return
    if event in EVENTS or event.split(".")[0] in MODULES:
        seen.append((event, str(arguments)[:200]))


sys.addaudithook(watch)


@contextmanager
def watching(path: Path) -> Iterator[Seen]:
    """What happens inside, save for opening the checkpoint itself."""
    seen: Seen = []
    watched.update(seen=seen, path=str(path))
    try:
        yield seen
    finally:
        watched["seen"] = None


def functions(content: bytes) -> list[Any]:
    """Torch's containers go to their format, everything else to the formats of bare pickles."""
    if content[:4] == b"PK\x03\x04" or content.startswith(pickling.LEGACY):
        return [rosinality.describe, rosinality.read]
    return [nvidia.describe, nvidia.read, tensorflow.read]


def refusal(function: Any, path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        function(path)
    return str(caught.value)


FILES = corpus.everything(CANARY)
LARGE = (
    "text encoded again and again",
    "stream loaded again and again",
    "memo beyond memory",
    "modules used twice, thirty times over",
    "one array as many biases",
)


@pytest.mark.parametrize("title", list(FILES))
def test_hostile_files_are_refused_and_run_nothing(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = FILES[title]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    begin = time.monotonic()
    with watching(path) as seen:
        messages = [refusal(function, path) for function in functions(content)]
    assert time.monotonic() - begin < SECONDS
    assert not seen, f"{title}: {seen}"
    assert not (tmp_path / CANARY).exists()
    assert any(word in message for message in messages for word in words.split("|")), messages


@pytest.mark.parametrize("title", ["zip bomb", "expanded tensor", "array told larger", "BINBYTES8", "nested lists", *LARGE])
def test_hostile_files_take_no_memory(title: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(FILES[title][0])
    tracemalloc.start()
    for function in functions(FILES[title][0])[1:]:
        refusal(function, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY, f"{title}: {peak >> 20} MiB"


def test_the_watch_sees_what_a_careless_reader_does(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(FILES["GLOBAL builtins eval"][0])
    with watching(path) as seen, path.open("rb") as file, contextlib.suppress(Exception):
        pickle.load(file)
    assert {event for event, _ in seen} >= {"pickle.find_class", "compile"}


def test_a_good_pickle_of_every_protocol_is_data() -> None:
    value = {"a": [1, -2, 2**40, 1.5, None, True, "ü", b"\x00\xff", ("x", {"y": set("z")})], "again": "ü", "o": OrderedDict(k=1)}
    value["long"], value["bytes"], value["shared"] = "x" * 300, b"y" * 300, value["a"]
    for protocol in (2, 3, 4, 5):
        content = pickle.dumps(value, protocol)
        budget = Budget.of(len(content))
        names = {**COMMON, **numpy_names(budget)}
        assert plain(load(memoryview(content), names, budget)) == plain(value)


def plain(value: Any) -> Any:
    """Views as bytes."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return bytes(value) if isinstance(value, memoryview) else value
