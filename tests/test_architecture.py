"""The shape of the code: which module may import which, where torch is, and that importing does nothing."""

from __future__ import annotations

import ast
import graphlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    "errors",
    "conf",
    "cluster",
    ("models", "limits", "store", "telemetry", "auth", "logs", "tracing", "waiting"),
    ("engine", "presence"),
    ("access", "cache", "history", "resting"),
    "server",
    ("schemas", "tasks", "routes"),
    ("journal", "shedding", "app"),
    "switch",
    "cli",
    "__main__",
]
"""From the bottom up; what stands together in one tuple is one layer, whose order inside ``INSIDE`` tells."""
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in ((layer,) if isinstance(layer, str) else layer)}
LOW = {"limits", "store", "telemetry", "auth", "logs", "tracing", "waiting"}  # of the project's, these see errors, conf and cluster alone
INSIDE = {
    ("routes", "schemas"),
    ("routes", "tasks"),
    ("tasks", "schemas"),
    ("app", "journal"),
    ("app", "shedding"),
    ("shedding", "journal"),
}
TORCH = {"torch", "diffusers", "transformers", "accelerate"}
WEB = {"asyncio", "fastapi", "starlette", "uvicorn", "gunicorn", "httpx"}


def modules() -> dict[str, Path]:
    """All modules of the package by name, and main."""
    found = {"main": ROOT / "main.py"}
    for path in sorted(path for path in (ROOT / "api").rglob("*.py") if "node_modules" not in path.parts):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, lazy: bool = True) -> Iterator[str]:
    """Full names of all that a module imports; without ``lazy`` only of what it imports when it is imported itself."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else eager(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def eager(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not for_types(node):
            yield node
            yield from eager(node)


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def part(name: str) -> str:
    """The part of the package that a module belongs to: "api.engine.lane" → "engine"."""
    return name.split(".")[1] if "." in name else name


def own(name: str, *, lazy: bool = True) -> list[str]:
    return [found for found in imports(name, lazy=lazy) if found.startswith("api.")]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("main", "api")])
def test_imports_look_down(name: str) -> None:
    here = part(name)
    assert here in RANKS, f"{name} belongs to no layer: give {here!r} its place in LAYERS"
    for found in own(name):
        there = part(found)
        if there == here:
            continue
        allowed = RANKS[there] < RANKS[here] or (here, there) in INSIDE
        assert allowed, f"{name} imports {found}, which is not below it"
        assert here not in LOW or there in ("errors", "conf", "cluster"), f"{name} imports {found}"


def test_main_stands_above_all() -> None:
    assert {part(found) for found in own("main")} <= {"app", "auth", "cluster", "conf", "engine", "errors", "presence", "switch"}
    assert not any("main" in list(imports(name)) for name in MODULES)


def test_there_is_no_cycle() -> None:
    graph = {name: set(own(name, lazy=False)) & set(MODULES) for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and tells the cycle
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_torch_stays_where_it_lives(name: str) -> None:
    if name.startswith("api.models.") or name == "api.engine.process":
        return
    assert not {found.split(".")[0] for found in imports(name)} & TORCH


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("api.models")])
def test_models_see_neither_web_nor_event_loop(name: str) -> None:
    assert not {found.split(".")[0] for found in imports(name)} & WEB


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["api.app", "api.cli", "api.__main__", "api.models.registry"])
def test_no_torch_comes_along(name: str) -> None:
    """Web workers and tools start fast and stay small, whatever is imported indirectly."""
    done = run(f"import sys, {name}; print(sorted(set(sys.modules) & {TORCH!r}))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Imports are inert. Python itself and libraries read files while they are imported, so what is watched for is done by our own lines:
# the audit hook looks whether one of our module bodies, or a function called by it, asked for the event, and not an import statement.
WATCH = """
import importlib, os, sys
import pydantic
pydantic.create_model("First")  # pydantic looks for installed plugins once, when a class is declared
root = os.path.join(os.getcwd(), "")
seen = []
touching = {"open", "os.mkdir", "os.remove", "os.rename", "os.listdir", "os.scandir", "os.chmod", "socket.connect", "socket.bind",
    "subprocess.Popen", "sqlite3.connect", "os.putenv", "os.unsetenv", "shutil.rmtree", "os.fork", "os.link", "os.symlink", "os.truncate"}

def asker():
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib") or file.startswith("<frozen zipimport"):
            return None
        if file.startswith(root) and ".venv" not in file:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back

def hook(event, arguments):
    if event in touching and (who := asker()):
        seen.append((event, repr(arguments)[:120], who))

def spy(name):
    original = getattr(type(os.environ), name)
    def spied(self, *arguments):
        if arguments != ("PYDANTIC_DISABLE_PLUGINS",) and (who := asker()):
            seen.append(("environ." + name, repr(arguments)[:120], who))
        return original(self, *arguments)
    setattr(type(os.environ), name, spied)

names = sys.argv[1:]
for name in ("__getitem__", "__iter__", "__len__"):
    spy(name)
sys.addaudithook(hook)
for name in names:
    importlib.import_module(name)
print(*seen, sep="\\n")
print("imported", len(names))
"""


def watch(names: list[str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", WATCH, *names], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines.pop() == f"imported {len(names)}"
    return lines


def test_importing_is_inert() -> None:
    assert watch([name for name in MODULES if name != "main"]) == []


@pytest.mark.parametrize(
    "line",
    [
        "import os; x = os.environ.get('HOME')",
        "import os; x = os.getenv('HOME')",
        "open(__file__).close()",
        "from pathlib import Path; Path(__file__).read_text()",
        "import tempfile; tempfile.mkdtemp()",
        "import sqlite3; sqlite3.connect(':memory:').close()",
        "import os; os.listdir('.')",
        "import subprocess; subprocess.run(['true'])",
    ],
)
def test_the_watch_sees_what_is_not_inert(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busy.py").write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert watch(["busy"])


def test_every_module_is_looked_at() -> None:
    found = {info.name for info in pkgutil.walk_packages([str(ROOT / "api")], "api.")}
    assert found <= set(MODULES)
    assert len(MODULES) > 40
