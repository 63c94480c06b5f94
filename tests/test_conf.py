"""The configuration: defaults, bounds, messages, paths, documents, and what becomes of a mistake when a server starts."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.conf import RESERVED, Config, engine_digest, forbid_id, keys_at, load_config, parse_config, walk
from api.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
LEAST: dict[str, Any] = {"models": {"m": {"file": "m.safetensors"}}}
WITH_DIRECTION: dict[str, Any] = {"models": {"m": {"file": "m.safetensors", "directions": {"d": {"file": "d.npz"}}}}}
SECTIONS = sorted({key.rpartition(".")[0] for key, _ in walk()} | {"models"})
few = settings(max_examples=60, deadline=None, print_blob=True)


def concrete(path: str) -> str:
    """The path with the names that the least configuration has in place of "<id>"."""
    return path.replace("directions.<id>", "directions.d").replace("<id>", "m")


def least(path: str) -> dict[str, Any]:
    return copy.deepcopy(WITH_DIRECTION if "directions.<id>" in path else LEAST)


def place(path: str, value: object) -> dict[str, Any]:
    """The least configuration with one key set."""
    data = least(path)
    *parents, name = concrete(path).split(".")
    table = data
    for parent in parents:
        table = table.setdefault(parent, {})
    table[name] = value
    return data


def look(config: Config, path: str) -> Any:
    value: Any = config
    for name in concrete(path).split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def complaint(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "x.toml")
    message = str(caught.value)
    assert all(line.startswith("x.toml: ") for line in message.splitlines())
    assert "Input should" not in message
    assert "pydantic" not in message
    return message


DEFAULTS = {
    "title": "StyleGAN FastAPI",
    "version": "1.0.0",
    "description": "",
    "docs": True,
    "redoc": True,
    "lossy": False,
    "server.gpu": False,
    "server.logger": None,
    "server.tmp_dir": Path("./run"),
    "server.http.forwarded": False,
    "server.http.forwarded_headers": ["X-Forwarded-For", "Forwarded"],
    "server.http.cors.enabled": False,
    "server.http.cors.origins": [],
    "server.limit.min_delay": 0.0,
    "server.limit.block.enabled": False,
    "server.limit.block.timeout": 10.0,
    "server.limit.block.poll": 0.25,
    "server.limit.concurrency.enabled": False,
    "server.limit.concurrency.max_concurrency": 8,
    "server.limit.concurrency.max_queue": 24,
    "server.limit.concurrency.timeout": 20,
    "server.limit.concurrency.poll": 0.1,
    "server.limit.rate.enabled": False,
    "server.limit.rate.window": 3600.0,
    "server.limit.rate.max_request": 200,
    "models.<id>.relative": False,
    "models.<id>.name": None,
    "models.<id>.description": "",
    "models.<id>.lossy": None,
    "models.<id>.gpu": None,
}


@pytest.mark.parametrize(("path", "value"), DEFAULTS.items())
def test_defaults_are_the_promised_ones(path: str, value: object) -> None:
    assert look(parse_config(LEAST), path) == value


INF, NAN = float("inf"), float("nan")
HASH = "sha256:" + 64 * "0"
BOUNDS: dict[str, tuple[list[object], list[object]]] = {
    "server.gpu": ([True, False, -1, 0, 7], [-2, 0.0, "cuda", []]),
    "server.limit.min_delay": ([0, 0.5], [-0.1, NAN, INF, "1"]),
    "server.limit.block.timeout": ([0, 3], [-1, NAN, INF]),
    "server.limit.block.poll": ([0.01], [0, -1.0, NAN]),
    "server.limit.concurrency.max_concurrency": ([1, 10**6], [0, -1, 1.0, True]),
    "server.limit.concurrency.max_queue": ([0, 5], [-1, 0.0, False]),
    "server.limit.concurrency.timeout": ([0, 0.5], [-0.5, INF]),
    "server.limit.concurrency.poll": ([0.01], [0.0, INF]),
    "server.limit.rate.window": ([0.1, 60], [0, -1, INF, NAN]),
    "server.limit.rate.max_request": ([1], [0, -3, 1.5]),
    "server.http.max_body": ([1024], [1023, 1e6]),
    "server.http.trusted_proxies": (
        [[], ["unix", "10.0.0.0/8", "::1", "fd00::/8", "10.0.0.1/8"]],
        [["10.0.0.0/33"], ["localhost"], "unix", [1]],
    ),
    "server.engine.max_batch": ([1, 256], [0, 257, True]),
    "server.engine.max_queue": ([1], [0]),
    "server.engine.threads": ([0, 64], [-1, 0.5]),
    "server.engine.encoders": ([1, 64], [0, 65]),
    "server.engine.precision": ([*("float32", "float16", "bfloat16")], ["float64", 32]),
    "server.engine.memory": ([0, 0.5, 80], [-1, INF]),
    "server.engine.wait": ([True, False], [1, "yes"]),
    "server.engine.deadline": ([0.5, 60], [0, INF]),
    "server.engine.linger": ([0, 5], [-1, NAN]),
    "trace.url": (["http://h:1/v1/traces", "https://h"], ["", "h", "http://", 3]),
    "trace.sample": ([0, 0.5, 1.0], [-0.1, 1.1, NAN]),
    "cluster.engine": (["local", "ray"], ["slurm", ""]),
    "cluster.address": (["10.0.0.1:6379", "head:6379"], ["head", "ray://head:10001", 3]),
    "cluster.name": (["one", "a-b_2"], ["", "a.b"]),
    "models.<id>.cluster.replicas": ([1, 9], [0, 1.5]),
    "models.<id>.cluster.num_gpus": ([0.0, 0.5], [-1.0]),
    "models.<id>.cluster.autoscale.min": ([1], [0]),
    "models.<id>.cluster.autoscale.target": ([0.5], [0.0]),
    "models.<id>.cluster.autoscale.up": ([0.0, 5.0], [-1.0]),
    "cluster.ingress.port": ([1, 65535], [0, 65536]),
    "cluster.ingress.workers": ([1], [0]),
    "cluster.ingress.num_cpus": ([0.0, 0.5], [-1.0]),
    "cluster.redis": (["redis://h", "valkey://:p@h:1/2", "rediss://h", "unix:///s"], ["", "redis://", "http://h", 3]),
    "store.url": (["sqlite:///x", "postgresql:///x"], ["", 3]),
    "tasks.parallel": ([0, 256], [-1, 257, True]),
    "tasks.max_pending": ([1], [0]),
    "tasks.deadline": ([0.5], [0, INF]),
    "tasks.lease": ([0.5], [0, NAN]),
    "tasks.keep": ([0, 1.5], [-1, INF]),
    "blobs.url": (["s3://b", "s3://b/c", "/mnt/blobs", "file:///x"], ["", "blobs", "s3://", "://b", 3]),
    "blobs.options": ([{}, {"key": "k", "config_kwargs": {"region_name": "r"}}], ["x", []]),
    "blobs.max_size": ([1024], [1023, 1e6]),
    "blobs.max_pixels": ([1], [0]),
    "blobs.expire": ([0, 60], [-1, NAN]),
    "auth.lifetime": ([60], [0, INF]),
    "prompts.max_length": ([1, 100_000], [0, 100_001]),
    "models.<id>.file": (["x", "/x/y", "../x"], ["", "a\0b", 3, ["x"]]),
    "models.<id>.name": (["A b"], ["", 1]),
    "models.<id>.gpu": ([True, False, -1, 3], [-2, "0", 1.5]),
    "models.<id>.diffusion.loras": ([{"x.safetensors": 0.8}], [{"a\0b": 0.8}, {"": 0.8}, {"x": 9.0}]),
    "models.<id>.truncation": (["class", "global"], ["", "none", True]),
    "models.<id>.max_batch": ([1, 256], [0, 257]),
    "models.<id>.precision": (["bfloat16"], ["half"]),
    "models": ([{"a": {"file": "x"}}], [{}, [], "x", {"a": "x"}, {"a": {}}]),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, (good, _) in BOUNDS.items() for value in good])
def test_allowed_values_are_taken(path: str, value: object) -> None:
    config = parse_config(place(path, value))
    if path not in ("models", "models.<id>.file"):
        assert look(config, path) == value


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, (_, bad) in BOUNDS.items() for value in bad])
def test_other_values_are_refused_by_key(path: str, value: object) -> None:
    message = complaint(place(path, value))
    assert message.startswith(f"x.toml: {concrete(path) if path != 'models' else 'models'}")
    assert "; must " in message or "; use " in message or "is required" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("server.limit.rate.max_request", 0, "server.limit.rate.max_request: found 0; must be at least 1"),
        ("server.limit.rate.window", 0.0, "server.limit.rate.window: found 0.0; must be greater than 0"),
        ("server.engine.max_batch", 512, "server.engine.max_batch: found 512; must be at most 256"),
        ("docs", "yes", 'docs: found "yes"; must be true or false'),
        ("server", 3, "server: found 3; must be a table"),
        ("models", {}, "models: found {}; must have at least 1 entry"),
        ("models", {"m": {}}, "models.m.file: is required and missing"),
        ("server.limt", {}, "server.limt: unknown key; did you mean 'limit'?"),
        ("models.<id>.gpu", "a", 'models.m.gpu: found "a"; use true, false or the index of a device (-1 is the CPU)'),
        (
            "models.a b.file",
            "x",
            "models.\"a b\": 'a b' cannot stand in a URL; use letters, digits, '-', '_', '~' and '.' (not as the first)",
        ),
        (
            "models.<id>.diffusion.loras",
            {"a\0b": 0.5},
            'models.m.diffusion.loras: found {"a\\u0000b": 0.5}; must be paths with their weights',
        ),
        ("models.docs.file", "x", "models.docs: 'docs' is a route of the server; choose another id"),
        ("title", "x" * 500, None),
        ("auth.api_keys", {"me": HASH}, None),
        (
            "auth.api_keys",
            {"me": "x"},
            "auth.api_keys.me: found \"x\"; use 'sha256:' and 64 hexadecimal digits, the hash of the key and not the key itself",
        ),
        ("title", ["x" * 500], f'title: found ["{"x" * 75}...; must be a text'),
        (
            "zzz",
            1,
            f"zzz: unknown key; known here: {', '.join(sorted(Config.model_fields))}",
        ),
    ],
)
def test_messages_read_well(path: str, value: object, message: str | None) -> None:
    if message is None:
        parse_config(place(path, value))
    else:
        assert complaint(place(path, value)) == f"x.toml: {message}"


def test_all_mistakes_are_told_at_once() -> None:
    data = place("server.limit.rate.windw", 1) | {"titel": "x"}
    assert len(complaint(data).splitlines()) == 2
    assert len(complaint({"models": {"docs": {"file": "x"}, "v1": {"file": "x"}}}).splitlines()) == 2


@pytest.mark.parametrize("key", [key for key, _ in walk()])
def test_a_misspelt_key_is_told_its_right_form(key: str) -> None:
    section, _, name = key.rpartition(".")
    wrong = name[:-2] + name[-1] if len(name) > 3 else name + "s"
    path = f"{section}.{wrong}" if section else wrong
    assert f"{concrete(path)}: unknown key; did you mean {name!r}?" in complaint(place(path, 1))


@few
@given(st.sampled_from([section for section in SECTIONS if section != "models"]), st.text(st.characters(codec="utf-8"), max_size=12))
def test_no_unknown_key_is_taken_anywhere(section: str, name: str) -> None:
    parents = concrete(section).split(".") if section else []
    assume(name not in keys_at(parents))
    data = least(section)
    table = data
    for parent in parents:
        table = table.setdefault(parent, {})
    table[name] = 1
    assert "unknown key; " in complaint(data)


toml_values = st.recursive(
    st.none().flatmap(lambda _: st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates() | st.times()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@few
@given(st.sampled_from([key for key, _ in walk()] + [section for section in SECTIONS if section]), toml_values)
def test_any_value_anywhere_is_taken_or_refused_with_a_message(path: str, value: object) -> None:
    try:
        parse_config(place(path, value), "x.toml")
    except ConfigError:
        assert concrete(path).split(".")[0] in complaint(place(path, value))


# Files.


@few
@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_a_message(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"title = ", "not valid TOML: .*end of document"),
        (b"docs = yes", "not valid TOML: .*line 1"),
        (b"a = 1\na = 2\n", "not valid TOML: .*line 2"),
        (b'title = "\xff"', "not valid TOML: byte 9 is not UTF-8"),
        ("title = 'ä'".encode("utf-16"), "not valid TOML: byte 0 is not UTF-8"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"a = " + b"9" * 10_000, "not valid TOML|unknown key"),
        (b"", "models: is required and missing"),
        (b"title = 1979-05-27", "must be a text"),
        (b"title." + b".".join([b"a"] * 3000) + b" = 1", "title: .*must be a text"),
    ],
)
def test_broken_files_are_told_of(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"models.m.file = 'x'")
    assert list(load_config(path).models) == ["m"]


def test_absent_files_and_folders_are_told_of(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{path}: cannot be read: {message}"):
            load_config(path)


# Ids.


@pytest.mark.parametrize("model_id", sorted(RESERVED))
def test_ids_of_routes_are_refused(model_id: str) -> None:
    assert f"{model_id!r} is a route" in complaint({"models": {model_id: {"file": "x"}}})


def test_every_route_is_reserved() -> None:
    from api.app import create_app

    config = parse_config(LEAST)
    paths = [getattr(route, "path", "") for route in routes_of(create_app(config).router)]
    assert len(paths) > 10
    firsts = {path.split("/")[1] for path in paths if path.startswith("/")}
    assert {name for name in firsts if name and "{" not in name} <= RESERVED


def routes_of(router: Any) -> Iterator[Any]:
    """All routes, also those of routers within routers."""
    for route in router.routes:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inner, "routes"):
            yield from routes_of(inner)
        yield route


@pytest.mark.parametrize(
    "model_id", ["", ".", "..", ".x", "a/b", "a\\b", "a b", "a?b", "a#b", "a%20b", "a\nb", "a\0b", "a:b", "é\u3000", 'a"b', "\u200b"]
)
def test_ids_that_cannot_stand_in_a_url_are_refused(model_id: str) -> None:
    assert "cannot stand in a URL" in complaint({"models": {model_id: {"file": "x"}}})


@few
@given(st.text(st.characters(codec="utf-8").filter(lambda character: forbid_id(f"a{character}") is None), min_size=1, max_size=10))
def test_an_accepted_id_survives_a_url(model_id: str) -> None:
    assume(forbid_id(model_id) is None)
    assert httpx.URL(f"http://host/{model_id}/generate").path == f"/{model_id}/generate"


@pytest.mark.parametrize("model_id", ["faces", "FFHQ-1024_v2.0", "a", "0", "-", "顔", "Models", "docs2", "~x"])
def test_ordinary_ids_are_taken(model_id: str) -> None:
    assert list(parse_config({"models": {model_id: {"file": "x"}}}).models) == [model_id]


# Paths.


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "work").mkdir()
    path = tmp_path / "etc" / "x.toml"
    models = {"a": {"file": "a"}, "b": {"file": "../b", "relative": True}, "c": {"file": "/c", "relative": True}}
    path.write_text(tomli_w.dumps({"server": {"data_dir": "/var/lib/x"}, "models": models}))
    monkeypatch.chdir(tmp_path / "work")
    for given_path in (path, Path("../etc/x.toml")):
        config = load_config(given_path)
        assert [model.file for model in config.models.values()] == [tmp_path / "work" / "a", tmp_path / "b", Path("/c")]
        assert (config.server.tmp_dir, config.server.data_dir) == (tmp_path / "work" / "run", Path("/var/lib/x"))


def test_a_link_in_circles_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "x.toml").write_text("[models.m]\nfile = 'loop/x'\nrelative = true")
    assert len(engine_digest(load_config(tmp_path / "x.toml"))) == 16
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "loop")


def test_nothing_in_the_tree_can_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_config(LEAST).title = "x"


@pytest.mark.parametrize("path", [path for path, (good, _) in BOUNDS.items() if good])
def test_the_tree_survives_its_way_to_the_engine(path: str) -> None:
    for value in BOUNDS[path][0]:
        config = parse_config(place(path, value))
        assert Config.model_validate_json(config.model_dump_json()) == config


# Devices.


@pytest.mark.parametrize(
    ("server", "model", "device"),
    [
        (False, None, "cpu"),
        (True, None, "cuda:0"),
        (-1, None, "cpu"),
        (0, None, "cuda:0"),
        (1, None, "cuda:1"),
        (3, False, "cpu"),
        (3, True, "cuda:0"),
        (False, 2, "cuda:2"),
        (True, -1, "cpu"),
        (True, 0, "cuda:0"),
    ],
)
def test_a_gpu_is_named_in_many_ways(server: bool | int, model: bool | int | None, device: str) -> None:
    data = place("server.gpu", server)
    if model is not None:
        data["models"]["m"]["gpu"] = model
    config = parse_config(data)
    assert config.device("m") == device
    assert config.devices() == {device: ["m"]}


@pytest.mark.parametrize(("root", "model", "lossy"), [(False, None, False), (True, None, True), (True, False, False), (False, True, True)])
def test_lossy_is_inherited(root: bool, model: bool | None, lossy: bool) -> None:
    data = place("lossy", root)
    if model is not None:
        data["models"]["m"]["lossy"] = model
    assert parse_config(data).lossy_of("m") is lossy


# The engine's name.

BLIND = [
    "title",
    "version",
    "description",
    "docs",
    "redoc",
    "server.logger",
    "server.log",
    "server.tmp_dir",
    "server.data_dir",
    "server.engine.deadline",
]
BLIND_SECTIONS = ("server.http.", "server.limit.", "store.", "tasks.", "blobs.", "auth.", "prompts.", "cluster.", "models.<id>.cluster.")
BLIND += [key for key, _ in walk() if key.startswith(BLIND_SECTIONS)]
SEEING = {
    "lossy": True,
    "trace.url": "http://collector",
    "trace.sample": 0.5,
    "server.gpu": 1,
    "server.engine.max_batch": 4,
    "server.engine.max_queue": 9,
    "server.engine.threads": 3,
    "server.engine.encoders": 5,
    "server.engine.precision": "float16",
    "server.engine.linger": 1.0,
    "server.engine.awake": 0.0,
    "server.engine.memory": 0.5,
    "server.engine.wait": False,
    "models.<id>.file": "other",
    "models.<id>.name": "N",
    "models.<id>.description": "d",
    "models.<id>.lossy": True,
    "models.<id>.gpu": 0,
    "models.<id>.family": "precure",
    "models.<id>.truncation": "global",
    "models.<id>.warmup": False,
    "models.<id>.max_batch": 2,
    "models.<id>.precision": "bfloat16",
    "models.<id>.diffusion.scheduler": "ddim",
    "models.<id>.diffusion.steps": 5,
    "models.<id>.diffusion.guidance": 2.0,
    "models.<id>.diffusion.max_size": 64,
    "models.<id>.diffusion.max_steps": 9,
    "models.<id>.diffusion.example": "a face",
    "models.<id>.diffusion.max_pictures": 2,
    "models.<id>.diffusion.safety_checker": False,
    "models.<id>.diffusion.loras": {"a.safetensors": 0.5},
    "models.<id>.diffusion.attention_slicing": True,
    "models.<id>.diffusion.vae_tiling": True,
    "models.<id>.diffusion.offload": "model",
    "models.<id>.diffusion.compile": True,
    "models.<id>.diffusion.revision": "v1",
    "models.<id>.diffusion.config": "folder",
    "models.<id>.diffusion.allow_pickle": True,
    "models.<id>.directions.<id>.file": "other",
    "models.<id>.directions.<id>.entry": "e",
    "models.<id>.directions.<id>.strength": 2.0,
    "models.<id>.directions.<id>.description": "d",
    "models.n.file": "second",
}
OTHER = {int: 2048, float: 7.5, list: ["unix"], dict: {"a": HASH}}
FEW: dict[str, object] = {
    "tasks.parallel": 2,
    "cluster.redis": "redis://host",
    "cluster.engine": "ray",
    "cluster.address": "host:6379",
    "models.<id>.cluster.num_gpus": 0.5,
    "models.<id>.cluster.autoscale.max": 2,
    "blobs.url": "/blobs",
    "server.log": "json",
}  # what the others would not do for


@pytest.mark.parametrize("key", BLIND)
def test_the_digest_ignores_what_an_engine_never_sees(key: str) -> None:
    field = dict(walk())[key]
    value = not field.default if isinstance(field.default, bool) else OTHER.get(type(field.default), "other")
    value = FEW.get(key, value)
    config = parse_config(place(key, value))
    assert config != parse_config(least(key))
    assert engine_digest(config) == engine_digest(parse_config(least(key)))


@pytest.mark.parametrize(("key", "value"), SEEING.items())
def test_the_digest_sees_what_an_engine_does(key: str, value: object) -> None:
    assert engine_digest(parse_config(place(key, value))) != engine_digest(parse_config(least(key)))


def test_every_key_is_seen_or_ignored_on_purpose() -> None:
    assert {key for key, _ in walk()} == {*BLIND, *SEEING, "models.<id>.relative"} - {"models.n.file"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models.<id>.lossy", False),
        ("models.<id>.gpu", -1),
        ("models.<id>.max_batch", 16),
        ("server.gpu", -1),
        ("models.<id>.relative", True),
    ],
)
def test_the_digest_is_of_the_meaning(key: str, value: object) -> None:
    assert engine_digest(parse_config(place(key, value))) == engine_digest(parse_config(LEAST))


def test_the_digest_sees_the_checkpoint_change(tmp_path: Path) -> None:
    path, toml = tmp_path / "m.bin", tmp_path / "x.toml"
    toml.write_text('models.m.file = "m.bin"\nmodels.m.relative = true\nmodels.m.directions.d.file = "d.npz"')
    seen = [engine_digest(load_config(toml))]
    path.write_bytes(b"one")
    seen.append(engine_digest(load_config(toml)))
    assert engine_digest(load_config(toml)) == seen[-1]
    path.write_bytes(b"other")
    seen.append(engine_digest(load_config(toml)))
    (tmp_path / "d.npz").write_bytes(b"a direction")
    seen.append(engine_digest(load_config(toml)))
    os.utime(path, (1, 1))
    seen.append(engine_digest(load_config(toml)))
    path.unlink()
    path.mkdir()
    (path / "part").write_bytes(b"x")
    seen.append(engine_digest(load_config(toml)))
    (path / "part").write_bytes(b"xy")
    seen.append(engine_digest(load_config(toml)))
    assert len(set(seen)) == len(seen)


# Documents.


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "scripts/document", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_key_that_the_page_lacks_is_noticed() -> None:
    page, keys = (ROOT / "docs" / "configuration.md").read_text(), [key for key, _ in walk()]
    for section in SECTIONS:
        title = f"## `[{section}]`" if section else "## The file's beginning"
        rows = page.partition(title)[2].partition("\n## ")[0]
        for key in keys:
            if key.rpartition(".")[0] == section:
                assert f"| `{key.rpartition('.')[2]}` |" in rows


def shown() -> dict[str, Any]:
    """default/config.toml with all keys that stand behind a "#" switched on."""
    text = (ROOT / "default" / "config.toml").read_text()
    return tomllib.loads(re.sub(r"(?m)^# ?(?=[a-z_]+ = )", "", text))


def test_the_default_file_shows_every_key_with_its_default() -> None:
    everything = shown()
    live = tomllib.loads((ROOT / "default" / "config.toml").read_text())
    for key, field in walk():
        path = key.replace("models.<id>.directions.<id>", "models.faces.directions.happy").replace("<id>", "glyphs").split(".")
        value = dig(everything, path)
        assert value is not None, f"default/config.toml does not show {key}"
        if key in ("models.<id>.file", "models.<id>.relative", "models.<id>.name", "models.<id>.description"):
            continue
        if key in ("models.<id>.directions.<id>.file", "models.<id>.directions.<id>.description"):
            continue
        if field.default is None:
            assert dig(live, path) is None, f"{key} is unset by default"
        else:
            expected = field.default
            assert (Path(value) if isinstance(expected, Path) else value) == expected, key
            assert dig(live, path) is not None
            assert type(value) is type(expected) or isinstance(expected, Path), key


def dig(data: Any, path: list[str]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def test_the_examples_in_the_default_file_are_allowed() -> None:
    parse_config(shown())


def test_the_default_file_is_the_default() -> None:
    config = load_config(ROOT / "default" / "config.toml")
    assert list(config.models) == ["glyphs", "faces", "tiny-diffusion"]
    assert {model.file.parent for model in config.models.values()} == {ROOT / "default" / "models"}
    assert config.server == load_config(ROOT / "default" / "config.min.toml").server


# Starting.


def start(command: list[str], toml: Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"STYLEGAN_TOML": str(toml), "PYTHONPATH": str(ROOT)} | more
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [["main.py"], ["-m", "uvicorn", "main:app", "--port", "0"]])
def test_a_mistake_ends_a_start_with_one_message(tmp_path: Path, command: list[str]) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text("[models.docs]\nfile = 'x'\n")
    done = start(command, toml)
    assert done.returncode == 2
    assert done.stderr == f"{toml}: models.docs: 'docs' is a route of the server; choose another id\n"
    assert done.stdout == ""


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text("server.tmp_dir = '/dev/null/run'\nmodels.m.file = 'x'\n")
    done = start(["main.py"], toml)
    assert (done.returncode, done.stderr) == (2, "server.tmp_dir: '/dev/null/run' cannot be used: Not a directory\n")


def test_a_mistake_ends_gunicorn(tmp_path: Path) -> None:
    """Else it would start workers for ever."""
    toml = tmp_path / "x.toml"
    toml.write_text("titel = 'x'\nmodels.m.file = 'x'\n")
    done = start(["-m", "gunicorn", "-c", "guni/conf.py", "--bind", "127.0.0.1:0", "--workers", "3"], toml)
    assert done.returncode == 2, done.stderr
    assert f"{toml}: titel: unknown key; did you mean 'title'?\n" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_the_variable_is_relative_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "here.toml").write_text("titel = 'x'\nmodels.m.file = 'x'\n")
    done = start([str(ROOT / "main.py")], Path("here.toml"), tmp_path)
    assert (done.returncode, done.stderr) == (2, "here.toml: titel: unknown key; did you mean 'title'?\n")


@pytest.mark.parametrize(
    ("given", "found"),
    [("mine.toml", "{mine}/mine.toml"), ("theirs.toml", "theirs.toml"), ("/x/mine.toml", "/x/mine.toml"), ("", ""), (None, "unset")],
)
def test_serve_takes_the_callers_file(tmp_path: Path, given: str | None, found: str) -> None:
    mine, theirs = tmp_path / "my files", tmp_path / "project"
    (theirs / "scripts").mkdir(parents=True)
    (theirs / "bin").mkdir()
    mine.mkdir()
    (mine / "mine.toml").touch()
    (theirs / "theirs.toml").touch()
    shutil.copy(ROOT / "scripts" / "serve", theirs / "scripts")
    for name, text in (("scripts/venv", "exit 0"), ("bin/python", 'echo "$PWD" "${STYLEGAN_TOML-unset}"')):
        (theirs / name).write_text(f"#!/bin/sh\n{text}\n")
        (theirs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "STYLEGAN_TOML"} | {"VENV": "."}
    if given is not None:
        environment["STYLEGAN_TOML"] = given
    done = subprocess.run([theirs / "scripts" / "serve"], cwd=mine, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{theirs} {found.format(mine=mine)}\n", "")


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1", "8e3", "٣", "9" * 5000])
def test_a_port_that_cannot_be_is_told(tmp_path: Path, port: str) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(f"server.tmp_dir = '{tmp_path}'\nmodels.m.file = 'x'\n")
    done = start(["main.py"], toml, PORT=port)
    assert (done.returncode, done.stderr) == (2, f"PORT: found {port[:40]!r}; use a number from 1 to 65535\n")
