"""``python -m bench serve``: the whole server against the bare engine and against LitServe with the same network."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.numbers import read_numbers
from bench.raw import BETWEEN
from tests.serving import ROOT, free_port

CLIENTS = (1, 8, 32)
OWN, MADE = ("stylegan_batch_seconds_sum", "stylegan_encode_seconds_sum"), "stylegan_pictures_total"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench serve", description=__doc__)
    parser.add_argument("--config", default="default/config.toml")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=1, help="web workers; more than one needs gunicorn")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many; 0: only the turns")
    parser.add_argument("--turns", type=int, default=6, help="of one client and of the bare engine, side by side; 0: no such comparison")
    parser.add_argument("--starts", type=int, default=3, help="of both for these turns: one process is faster than the next")
    options = parser.parse_args(argv)
    raws, rows = [], {name: {} for name in ("this server", "LitServe, our encoder", "LitServe, Pillow")}  # type: ignore[var-annotated]
    for _ in range(options.rounds):
        raws.append(measure(["bench.raw", options.config, options.model, str(options.seconds)]))
        run_server(options, rows["this server"])
        for encoder, name in (("ours", "LitServe, our encoder"), ("pillow", "LitServe, Pillow")):
            run_peer(options, encoder, rows[name])
    if raws:
        report(options.model, raws, rows)
    if options.turns:
        compare(options)
    return 0


def run_server(options: argparse.Namespace, found: dict[int, dict[str, Any]]) -> None:
    port = free_port()
    command = [sys.executable, "main.py"]
    if options.workers > 1:
        command = [sys.executable, "-m", "gunicorn", "-c", "guni/conf.py", "-b", f"127.0.0.1:{port}", "-w", str(options.workers)]
    environment = {"STYLEGAN_TOML": options.config, "PORT": str(port)}
    with running(command, environment, f"http://127.0.0.1:{port}/readyz"):
        press(f"http://127.0.0.1:{port}/{options.model}/generate?seed={{seed}}", None, options.seconds, found)


class Turn(NamedTuple):
    """Milliseconds of a picture."""

    bare: Sequence[float]
    """Model and encoder without a server, in the three ways of ``bench.raw``; medians."""
    served: float
    """To a lone client; the median."""
    whole: float
    """The same, the mean."""
    own: float
    """What model and encoder took of that, by the server's own clock; the mean."""


def compare(options: argparse.Namespace) -> None:
    """What a lone request takes more than model and encoder, in neighbouring turns: the machine changes by the minute.

    More than these took for that very request, and than they take without a server, where nothing else cools their caches.
    """
    turns = [turn for _ in range(options.starts) for turn in take_turns(options)]
    print(f"\none client, {len(turns)} turns: {statistics.median(turn.served for turn in turns):.2f} ms")
    tell("in these requests", [turn.own for turn in turns], [turn.whole for turn in turns])
    for place, name in enumerate(("by one core in a loop", "by a team in a loop", f"by a team, {1000 * BETWEEN:g} ms apart")):
        tell(name, [turn.bare[place] for turn in turns], [turn.served for turn in turns])


def tell(name: str, own: Sequence[float], served: Sequence[float]) -> None:
    low, middle, high = statistics.quantiles([whole - part for whole, part in zip(served, own, strict=True)], n=4)
    print(f"model and encoder, {name}: {statistics.median(own):.2f} ms; {middle:.2f} ms more ({low:.2f} … {high:.2f})")


def take_turns(options: argparse.Namespace) -> list[Turn]:
    """Each turn of the bare engine and of the server, one after the other."""
    port, found = free_port(), list[Turn]()
    command = [sys.executable, "-m", "bench.raw", options.config, options.model, "1", "turns"]
    environment = {"STYLEGAN_TOML": options.config, "PORT": str(port)}
    root = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare,
        running([sys.executable, "main.py"], environment, f"{root}/readyz"),
    ):
        assert bare.stdin is not None
        assert bare.stdout is not None
        for _ in range(options.turns + 1):
            print(file=bare.stdin, flush=True)
            alone = [float(word) for word in bare.stdout.readline().split()]
            before = read_numbers(root, options.model)
            told = measure(["bench.load", f"{root}/{options.model}/generate?seed={{seed}}", "1", "1"])
            after = read_numbers(root, options.model)
            own = sum(after[name] - before.get(name, 0.0) for name in OWN) / (after[MADE] - before.get(MADE, 0.0))
            found.append(Turn(alone, told["p50"], told["mean"], 1000 * own))
        bare.stdin.close()
    return found[1:]  # the first turn warms up


def run_peer(options: argparse.Namespace, encoder: str, found: dict[int, dict[str, Any]]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bench.litserve_peer", options.config, options.model, str(port), encoder]
    with running(command, {}, f"http://127.0.0.1:{port}/health"):
        press(f"http://127.0.0.1:{port}/predict", '{"seed": {seed}}', options.seconds, found)


def press(url: str, body: str | None, seconds: float, found: dict[int, dict[str, Any]]) -> None:
    """Measures each number of clients; keeps the better of this and what was found before."""
    for clients in CLIENTS:
        arguments = ["bench.load", url, str(clients), str(seconds), *([body] if body else [])]
        measure([*arguments[:3], "1", *arguments[4:]])
        result = measure(arguments)
        if set(result["statuses"]) != {"200"}:
            raise SystemExit(f"{url}: {result['statuses']}")
        if clients not in found or result["rate"] > found[clients]["rate"]:
            found[clients] = result


def measure(arguments: Sequence[str]) -> Any:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running(command: Sequence[str], environment: dict[str, str], ready: str) -> Iterator[int]:
    """The command's process id, once ``ready`` answers."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(ready, timeout=2) as answer,
            ):
                if answer.status == 200:
                    break
            time.sleep(0.1)
        else:
            raise SystemExit(f"{command} did not become ready")
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # The engine lingers for a few seconds after its last worker; the next measurement wants the cores.
        time.sleep(6)


def report(model: str, raws: list[dict[str, Any]], rows: dict[str, dict[int, dict[str, Any]]]) -> None:
    batched, encoded = (max(raw[key] for raw in raws) for key in ("batched_rate", "encoded_rate"))
    single, team = (min(raw[key] for raw in raws) for key in ("single_ms", "team_ms"))
    cpu = Path("/proc/cpuinfo").read_text().split("model name")[1].splitlines()[0].strip(" \t:")
    print(f"{model}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {cpu}")
    print(f"bare engine in batches of {raws[0]['batch']}: {batched:.0f} pictures/s, {encoded:.0f} with PNGs")
    print(f"one picture {single:.2f} ms by one core, {team:.2f} ms by a team\n")
    print("| server | clients | pictures/s | of the network | with PNGs | p50 ms | p95 ms | p99 ms |\n" + 8 * "|---" + "|")
    for name, found in rows.items():
        for clients, result in found.items():
            numbers = [result["rate"] / batched, result["rate"] / encoded, result["p50"], result["p95"], result["p99"]]
            print(f"| {name} | {clients} | {result['rate']:.0f} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    ours, peer = rows["this server"], rows["LitServe, our encoder"]
    print()
    for clients in CLIENTS:
        print(f"{clients} clients: {ours[clients]['rate'] / peer[clients]['rate']:.2f} × LitServe with the same network and encoder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
