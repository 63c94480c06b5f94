"""``python -m api``: every command with good and bad input, as functions and as real processes."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import h5py
import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import cli
from api.__main__ import build_parser, main
from api.conf import forbid_id, load_config
from api.models import formats
from api.models.base import Checkpoint, Description
from api.models.formats import hdf5
from tests.test_conf import BOUNDS, ROOT, place

ARGUMENTS = {"size": 8, "depth": 2, "levels": 2, "first_channels": 8, "last_channels": 4, "categories": 3}


def save_tiny(path: Path, labels: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """A conditional Precure checkpoint of some kilobytes with random weights."""
    random = np.random.default_rng(7)
    places = hdf5.layout(ARGUMENTS)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, (_, shape) in places.items()}
    description = Description(format="hdf5", family="precure", arguments=ARGUMENTS, labels=labels)
    hdf5.write(path, Checkpoint(description=description, tensors=tensors))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny.hdf5")


@pytest.fixture
def toml(tiny: Path) -> Path:
    path = tiny.with_name("x.toml")
    path.write_text('[models.one]\nfile = "tiny.hdf5"\nrelative = true\n[models.other]\nfile = "tiny.hdf5"\nrelative = true\ngpu = 1\n')
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    return (status, *capsys.readouterr())


def fails(capsys: pytest.CaptureFixture[str], message: str, *arguments: object) -> None:
    """The command ends with status 2 and one line on standard error."""
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(message, err.removesuffix("\n")), err
    assert err.count("\n") == 1


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, timeout=120, **({"capture_output": True} | options))


# check


def test_check_prints_a_line_per_model(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "check", toml)
    assert (status, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()] == [["one", "cpu", "precure"], ["other", "cuda:1", "precure"]]
    assert all("3 classes" in line and str(toml.with_name("tiny.hdf5")) in line for line in out.splitlines())


def test_check_tells_all_bad_checkpoints_and_the_good_ones(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toml.parent / "bad.hdf5").write_bytes(b"nonsense")
    toml.write_text(toml.read_text() + '[models.bad]\nfile = "bad.hdf5"\nrelative = true\n[models.no]\nfile = "no"\nrelative = true\n')
    status, out, err = call(capsys, "check", toml)
    assert status == 2
    assert len(out.splitlines()) == 2
    bad, no = err.splitlines()
    assert bad.startswith(f"{toml}: models.bad: {toml.parent / 'bad.hdf5'}: no known checkpoint format")
    assert no == f"{toml}: models.no: {toml.parent / 'no'}: cannot be read: No such file or directory"


def test_check_refuses_an_unknown_family(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text('models.m.file = "tiny.hdf5"\nmodels.m.relative = true\nmodels.m.family = "precur"\n')
    fails(capsys, ".*models.m: .*'precur' is unknown; known: .*", "check", toml)


def test_check_refuses_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.toml").write_text("title = 3\nmodels.m.file = 'x'")
    fails(capsys, ".*x.toml: title: found 3; must be a text", "check", tmp_path / "x.toml")
    fails(capsys, ".*y.toml: cannot be read: No such file or directory", "check", tmp_path / "y.toml")


# info


def test_info_tells_what_is_inside(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "info", tiny)
    assert (status, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert facts["file"] == str(tiny)
    assert facts["format"] == "hdf5"
    assert facts["family"] == "precure"
    assert facts["labels"] == "a, b, c"
    assert facts["bytes"] == f"{tiny.stat().st_size:,}"
    assert "            levels = 2" in out.splitlines()


def test_info_speaks_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "info", "--json", tiny)
    facts = json.loads(out)
    assert status == 0
    assert facts["arguments"] == ARGUMENTS
    assert facts["labels"] == ["a", "b", "c"]
    assert facts["tensors"] == len(hdf5.layout(ARGUMENTS))
    assert facts["parameters"] == sum(int(np.prod(shape)) for _, shape in hdf5.layout(ARGUMENTS).values())


def test_info_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_tiny(tmp_path / "x.hdf5", ("\x1b]0;owned\x07", "b\nfile        /etc/passwd", "\u202egnp"))
    _, out, _ = call(capsys, "info", path)
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "file        /etc/passwd" not in out.splitlines()
    assert json.loads(call(capsys, "info", "--json", path)[1])["labels"][0] == "\x1b]0;owned\x07"


def test_info_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    for name in ("pipe", "text", "empty", "none", ""):
        fails(capsys, f"{tmp_path / name}: .*", "info", tmp_path / name)


def test_info_tells_a_damaged_file(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tiny, "r+") as file:
        file.attrs["levels"] = 99
    fails(capsys, ".*tiny.hdf5: attribute 'levels' is 99; 1 to 11 is expected", "info", tiny)
    tiny.write_bytes(tiny.read_bytes()[:500])
    fails(capsys, ".*tiny.hdf5: .*", "info", tiny)


# init


def test_init_serves_what_it_finds(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.parent
    for name in ("models.hdf5", "sub/tiny.hdf5", "sub/Gr\u00fc\u00dfe aus (Bonn)!.hdf5", ".hidden/x.hdf5", "q\"uo\\te'.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(tiny.read_bytes())
    (folder / "notes.txt").write_text("no checkpoint")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    status, out, err = call(capsys, "init", folder)
    assert (status, err) == (0, "")
    config = load_config(folder / "config.toml")
    assert set(config.models) == {"models-2", "tiny", "tiny-2", "Gr\u00fc\u00dfe-aus-Bonn", "q-uo-te"}
    assert [line.split()[0] for line in out.splitlines()] == list(config.models)
    assert all(model.file.is_file() for model in config.models.values())
    assert len({model.file for model in config.models.values()}) == 5
    assert call(capsys, "check", folder / "config.toml")[0] == 0


def test_init_does_not_overwrite(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny.with_name("config.toml")
    target.write_text("mine")
    fails(capsys, f"{target}: exists; --force replaces it", "init", tiny.parent)
    assert target.read_text() == "mine"
    assert call(capsys, "init", tiny.parent, "--force")[0] == 0
    assert list(load_config(target).models) == ["tiny"]
    assert {path.name for path in tiny.parent.iterdir()} == {"tiny.hdf5", "config.toml"}


def test_init_writes_elsewhere(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    assert call(capsys, "init", tiny.parent, "-o", tmp_path / "etc" / "my.toml")[0] == 0
    assert load_config(tmp_path / "etc" / "my.toml").models["tiny"].file == tiny
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "init", ".", "-o", "my.toml")[0] == 0
    assert load_config("my.toml").models["tiny"].file == tiny
    fails(capsys, ".*/none/.*: No such file or directory", "init", tiny.parent, "-o", tmp_path / "none" / "my.toml")


def test_init_passes_over_what_cannot_be_read(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.parent / "half.hdf5").write_bytes(tiny.read_bytes()[:600])
    status, _, err = call(capsys, "init", tiny.parent)
    assert status == 0
    assert err.startswith(f"passed over: {tiny.parent / 'half.hdf5'}: ")
    assert list(load_config(tiny.with_name("config.toml")).models) == ["tiny"]


def test_init_passes_over_names_that_are_not_utf_8(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.parent
    for name in (b"caf\xe9.hdf5", b"caf\xe9.txt", b"s\xe9/x.hdf5"):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if path.suffix == ".txt" else tiny.read_bytes())
    status, _, err = call(capsys, "init", folder)
    assert status == 0
    told = [f"passed over: {folder}/{name}: its name is not printable UTF-8" for name in ("caf\\udce9.hdf5", "s\\udce9")]
    assert err.splitlines() == told
    assert list(load_config(folder / "config.toml").models) == ["tiny"]


def test_paths_that_are_not_utf_8_are_taken_or_told_of(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    checkpoint = tiny.rename(folder / "tiny.hdf5")
    assert call(capsys, "init", folder)[::2] == (0, "")
    assert load_config(folder / "config.toml").models["tiny"].file == checkpoint
    status, out, err = call(capsys, "check", folder / "config.toml")
    assert (status, err) == (0, "")
    assert "caf\\udce9/tiny.hdf5" in out
    assert call(capsys, "info", checkpoint)[::2] == (0, "")
    assert json.loads(call(capsys, "info", "--json", checkpoint)[1])["file"] == str(checkpoint)
    # Only a TOML file elsewhere has to say the folder's name.
    fails(capsys, r".*/caf\\udce9: its path from .* cannot stand in a TOML file, which is UTF-8", "init", folder, "-o", tmp_path / "o.toml")
    fails(capsys, r".*/caf\\udce9/none: cannot be read: No such file or directory", "info", folder / "none")
    fails(capsys, r".*/caf\\udce9/none: cannot be read: No such file or directory", "check", folder / "none")
    fails(capsys, r".*/caf\\udce9/none: is not a folder", "init", folder / "none")
    checkpoint.write_bytes(checkpoint.read_bytes()[:600])
    damaged = run("info", checkpoint, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})  # as most locales have it
    assert (damaged.returncode, damaged.stderr.count("\n")) == (2, 1), damaged.stderr
    assert "caf\\udce9/tiny.hdf5: " in damaged.stderr
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}
    done = run("init", folder, "-o", tmp_path / "o.toml")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_init_needs_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, f"{tmp_path}: no checkpoint found", "init", tmp_path)
    fails(capsys, ".*/none: is not a folder", "init", tmp_path / "none")
    assert not list(tmp_path.iterdir())


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.lists(st.text(max_size=12) | st.sampled_from(["models", "docs", "v1", "...", "model", "model-2", "e\u0301"]), max_size=8))
def test_ids_are_always_allowed_and_never_twice(stems: list[str]) -> None:
    taken: list[str] = []
    for stem in stems:
        model_id = cli.choose_id(stem, taken)
        assert forbid_id(model_id) is None
        assert model_id not in taken
        taken.append(model_id)


@pytest.mark.parametrize(("stem", "model_id"), [("FFHQ-1024_v2.0", "FFHQ-1024_v2.0"), ("my face", "my-face"), ("(1)", "1"), ("", "model")])
def test_ids_say_what_the_name_says(stem: str, model_id: str) -> None:
    assert cli.choose_id(stem, ()) == model_id


# convert


def test_convert_keeps_everything(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny.with_suffix(".safetensors")
    status, out, err = call(capsys, "convert", tiny, target)
    assert (status, err) == (0, "")
    assert out.startswith(str(target))
    before, after = formats.find(tiny).read(tiny), formats.find(target).read(target)
    assert formats.find(target).describe(target).format == "safetensors"
    assert (after.description.family, after.description.labels) == ("precure", ("a", "b", "c"))
    assert after.description.arguments == before.description.arguments
    assert before.tensors.keys() == after.tensors.keys()
    for name, array in before.tensors.items():
        np.testing.assert_array_equal(array, after.tensors[name], strict=True)


def test_convert_takes_its_own_output_in_place(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny.with_suffix(".safetensors")
    assert call(capsys, "convert", tiny, target)[0] == 0
    content = target.read_bytes()
    assert call(capsys, "convert", target, target, "--force")[0] == 0
    assert target.read_bytes() == content


def test_convert_refuses(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny.with_suffix(".safetensors")
    target.write_bytes(b"mine")
    fails(capsys, f"{target}: exists; --force replaces it", "convert", tiny, target)
    fails(capsys, ".*x.bin: the name must end in .safetensors", "convert", tiny, tiny.with_name("x.bin"))
    fails(capsys, ".*No such file or directory", "convert", tiny, tiny.parent / "none" / "x.safetensors")
    fails(capsys, ".*no known checkpoint format.*", "convert", target, tiny.with_name("y.safetensors"))
    fails(
        capsys,
        ".*tiny-diffusion: a pipeline is served as it is.*",
        "convert",
        ROOT / "default/models/tiny-diffusion",
        tiny.with_name("y.safetensors"),
    )
    assert target.read_bytes() == b"mine"
    assert {path.name for path in tiny.parent.iterdir()} == {"tiny.hdf5", "tiny.safetensors"}


@pytest.mark.parametrize("existing", [True, False])
def test_convert_leaves_no_half_file(tiny: Path, existing: bool) -> None:
    """The disk is full in the middle of it; a limit on the process's files does the same."""
    source, target = tiny.with_name("source.safetensors"), tiny.with_name("target.safetensors")
    assert run("convert", tiny, source).returncode == 0
    if existing:
        target.write_bytes(b"mine")
    limit = 4096
    assert source.stat().st_size > 2 * limit
    done = run("convert", source, target, "--force", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tiny.parent.iterdir()} == {"tiny.hdf5", source.name} | ({target.name} if existing else set())
    assert not existing or target.read_bytes() == b"mine"


def test_progress_is_for_terminals(tiny: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = run("convert", tiny, tiny.with_name("a.safetensors"), capture_output=False, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        seen = b""
        try:
            while piece := terminal.read(4096):
                seen += piece
        except OSError:  # how Linux says that nobody holds the other end
            pass
    assert done.returncode == 0
    assert b"writing" in seen
    assert "writing" not in done.stdout
    assert run("convert", tiny, tiny.with_name("b.safetensors")).stderr == ""


# schema and openapi


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(json.dumps(cli.json_schema()))


def test_schema_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "schema")
    schema = json.loads(out)
    assert status == 0
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        assert table["additionalProperties"] is False
        for name, key in table["properties"].items():
            assert "description" in key or "$ref" in key or name == "models"
    assert schema["$defs"]["RateConf"]["properties"]["max_request"]["default"] == 200
    assert '"null"' not in out


@pytest.mark.parametrize("path", [path for path, (good, _) in BOUNDS.items() if good])
def test_schema_takes_what_the_server_takes(path: str, validator: Any) -> None:
    for value in BOUNDS[path][0]:
        assert validator.is_valid(place(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((path, value) for path, (_, bad) in BOUNDS.items() for value in bad if type(value) is int),
        ("server.limit.rate.max_request", True),
        ("models.<id>.precision", "half"),
        ("models", {}),
        ("models", {"docs": {"file": "x"}}),
        ("models", {"a/b": {"file": "x"}}),
        ("models", {"a": {}}),
        ("titel", "x"),
        ("models.<id>.fiel", "x"),
        ("server.limit.rate.window", 0.0),
    ],
)
def test_schema_refuses_what_the_server_refuses(path: str, value: object, validator: Any) -> None:
    assert not validator.is_valid(place(path, value))


def test_openapi_describes_the_configuration(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text('title = "Mine"\n' + toml.read_text())
    status, out, err = call(capsys, "openapi", toml)
    assert (status, err) == (0, "")
    made = json.loads(out)
    assert made["info"]["title"] == "Mine"
    assert made["paths"]["/{model_id}/generate"]["post"]["operationId"] == "generate"
    assert not (toml.parent / "run").exists()
    assert json.loads(call(capsys, "openapi")[1])["info"]["title"] == "StyleGAN FastAPI"
    fails(capsys, ".*none: cannot be read: .*", "openapi", toml.with_name("none"))


# All of them


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["check"], ["info"], ["init", "a", "b"], ["convert", "a"], ["schema", "x"], ["info", "--jso", "x"]]
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, r"python -m api.*: .* \(see python -m api.* --help\)", *arguments)


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def test_the_page_tells_every_command_and_option() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    sections = {part.split()[0]: part for part in page.split("\n## ")[1:]}
    assert list(sections) == list(commands())
    for name, parser in commands().items():
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in sections[name], f"docs/cli.md: {name} {option}"


def test_help_is_there() -> None:
    for name, parser in commands().items():
        assert parser.description
        assert all(action.help for action in parser._actions), name


def test_a_real_process_tells_mistakes_by_its_status(tiny: Path) -> None:
    assert run("info", tiny).returncode == 0
    done = run("info", tiny.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_reader_may_leave(tiny: Path) -> None:
    done = subprocess.run(f"{sys.executable} -m api schema | head -c 1", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("{", "")


def test_a_terminal_need_not_know_every_letter(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "x.hdf5", ("\u9854", "\u00e9", "c"))
    done = run("info", path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u9854, \\xe9, c" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_quietly(tmp_path: Path, number: int, status: int) -> None:
    os.mkfifo(tmp_path / "pipe")  # a configuration that nobody ever writes: the command waits
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "check", tmp_path / "pipe"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background ignores SIGINT, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    writer = None
    for _ in range(2000):
        try:
            writer = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)  # works once the command reads
            break
        except OSError:
            time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert writer is not None
    os.close(writer)
    assert (process.returncode, err) == (status, "")


def test_tools_start_fast() -> None:
    """No torch, no web framework: what they would cost is seconds."""
    slow = {"torch", "fastapi", "h5py"}
    program = f"import sys; from api.__main__ import main; main(['schema']); print(set(sys.modules) & {slow}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == "set()\n"
