"""``python -m bench overload``: more requests than the server can serve, and one client that asks for more than its part.

Clients that ask again when they are answered find the best throughput. In turns with them three times as much is offered by many clients
that do not wait, and compared with the turns before and after it, since machines have slow minutes. Last, a greedy client asks over many
connections without a pause, beside polite ones that each ask for a fair share of the best: once with the default limits, which are off,
and once with a limit per client. Whatever is refused must be so by 429 or 503 with Retry-After; any other answer makes the exit status 1.
Aims that are missed are told.

Clients take no core of the server's, as on other machines, unless ``--together`` is given or there is one core alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.crowd import WAIT, Group
from bench.fitting import fit
from tests.serving import ROOT, Running, serve

LEAD = 1.0  # seconds before counting begins, at most
CROWD, CONNECTIONS = 64, 8  # clients of the overload, and the most of each one's connections
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Found:
    """What a group of clients met, a second."""

    asked: float
    served: float
    refused: float
    parts: Sequence[tuple[float, float]]
    """Asked and served of each client."""
    waits: Sequence[float]
    """Milliseconds of served requests, sorted."""
    refusals: Sequence[float]
    """Milliseconds of refused requests, sorted."""
    faults: Counter[str]
    """Answers that must not be."""
    unsent: int


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench overload", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "default" / "config.toml")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--request", help="what is asked for, {seed} being a number; POST /MODEL/generate?seed={seed} if absent")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=6, help="of overloading between two turns that find the best")
    parser.add_argument("--factor", type=float, default=3.0, help="of the best throughput is offered")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at work at once, and as many may wait")
    parser.add_argument("--workers", type=int, default=0, help="web workers of gunicorn; 0: python main.py")
    parser.add_argument("--greedy", type=int, default=50, help="connections of the greedy client")
    parser.add_argument("--polite", type=int, default=9, help="polite clients")
    parser.add_argument(
        "--greed-seconds", type=float, default=60.0, help="with a greedy client: in ten, chance gives one more than another"
    )
    parser.add_argument("--no-greed", dest="greed", action="store_false", help="leave the greedy client out")
    parser.add_argument("--together", action="store_true", help="the clients share the server's cores; else they have one of their own")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    options.cores = (cores, cores) if options.together or len(cores) == 1 else (cores[:-1], cores[-1:])
    counts = ", ".join(f"{len(part)} for {who}" for part, who in zip(options.cores, ("the server", "clients"), strict=True))
    machine = f"cores: {counts}, load {os.getloadavg()[0]:.1f}"
    print(f"{options.request or options.model}, {time.strftime('%Y-%m-%d %H:%M')}, {machine}, seed {options.seed}\n", flush=True)
    best, faults = overload(options)
    if options.greed:
        faults += greed(options, best, {}, "no limits")
        faults += greed(options, best, {"block": {"enabled": True}}, "[server.limit.block] on")
    for fault, count in faults.items():
        print(f"{count} × {fault}: only 200, and 429 and 503 with Retry-After, are answers of a busy server")
    return int(bool(faults))


def overload(options: argparse.Namespace) -> tuple[float, Counter[str]]:
    """The best throughput, and answers that must not be."""
    size, faults = options.concurrency, Counter[str]()
    limit = {"concurrency": {"enabled": True, "max_concurrency": size, "max_queue": size}}
    print("| clients | asked/s | served/s | p50 ms | p99 ms | refused/s | p50 ms | p99 ms | cores: web, engine, clients |")
    print("|---|---|---|---|---|---|---|---|---|")
    bests, lows, lates = list[float](), list[float](), list[float]()
    with served(options, limit) as server:

        def turn(title: str, **clients: Any) -> Found:
            nonlocal faults
            (found,), cores = press(server, [group(options, "crowd", **clients)], options.seconds, options.seed + len(bests))
            faults += found.faults
            tell(title, found, cores)
            return found

        press(server, [group(options, "warm", clients=size)], LEAD, options.seed)
        bests.append(turn(f"{size} that wait", clients=size).served)
        for _ in range(options.rounds):
            rate = options.factor * bests[-1]
            found = turn(f"**{options.factor:g} × the best**", clients=CROWD, connections=CONNECTIONS, rate=rate)
            bests.append(turn(f"{size} that wait", clients=size).served)
            lows.append(found.served / statistics.mean(bests[-2:]))
            lates.append(quantile(found.refusals, 0.99))
    print()
    judge("throughput under overload, of the turns before and after, median", lows, 0.95, statistics.median)
    judge("refused requests, p99 ms, the longest", lates, 50, max, at_least=False)
    return statistics.median(bests), faults


def greed(options: argparse.Namespace, best: float, limit: Mapping[str, Any], name: str) -> Counter[str]:
    """A greedy client beside polite ones."""
    share = best / (options.polite + 1)
    greedy = group(options, "greedy", clients=1, connections=options.greedy, patient=False)
    polite = group(options, "polite", 1000, clients=options.polite, connections=4 * CONNECTIONS, rate=share * options.polite)
    print(f"\n{name}: one client asks over {options.greedy} connections, {options.polite} for {share:.1f} pictures a second each\n")
    with served(options, limit) as server:
        press(server, [greedy, polite], LEAD, options.seed)
        (alone,), _ = press(server, [polite], options.greed_seconds, options.seed)
        (taken, left), _ = press(server, [greedy, polite], options.greed_seconds, options.seed)
    fair = (taken.served + left.served) / (options.polite + 1)
    print("| clients | asked/s | served/s | of a fair share | p50 ms | p99 ms | refused/s |\n|---|---|---|---|---|---|---|")
    for title, found, count in (("polite, alone", alone, options.polite), ("polite", left, options.polite), ("greedy", taken, 1)):
        each = found.served / count
        row = f"{found.asked / count:.1f} | {each:.1f} | {each / fair:.2f} | {times(found.waits)} | {found.refused / count:.1f}"
        print(f"| {title}{': each' if count > 1 else ''} | {row} |")
    print()
    judge("the least polite one's part of a fair share, or of what it asked for", [min(part(one, fair) for one in left.parts)], 0.95, min)
    return alone.faults + taken.faults + left.faults


def part(client: tuple[float, float], fair: float) -> float:
    """What it was served, of a fair share, or of what it asked for if that is less."""
    asked, got = client
    return got / min(asked, fair) if asked else 1.0


def group(options: argparse.Namespace, name: str, first: int = 0, **more: Any) -> Group:
    return Group(name, first, request=options.request or f"POST /{options.model}/generate?seed={{seed}}", **more)


@contextlib.contextmanager
def served(options: argparse.Namespace, limit: Mapping[str, Any]) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = fit(options.config, Path(folder), [options.model], {"limit": limit, "engine": {"linger": 0.5}})
        with contextlib.ExitStack() as stack:
            server, clients = options.cores
            with on(server):
                running = stack.enter_context(serve(config, workers=options.workers))
            with on(clients):
                yield running


@contextlib.contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def press(server: Running, groups: Sequence[Group], seconds: float, seed: int) -> tuple[list[Found], str]:
    """What each group met, and how many cores web workers, engines and clients kept busy."""
    lead, port = min(LEAD, seconds), int(server.url.rpartition(":")[2])
    out = server.folder / "crowd.json"
    asked = {"port": port, "groups": [asdict(one) for one in groups], "lead": lead, "seconds": seconds, "seed": seed, "out": str(out)}
    before, begun = cpu(server), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bench.crowd"],
        input=json.dumps(asked),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + lead + 2 * WAIT,
    )
    if done.returncode:
        raise SystemExit(done.stderr + server.log.read_text()[-2000:])
    spent, after = time.monotonic() - begun, cpu(server)
    told = json.loads(out.read_text())
    if told["unanswered"]:
        raise SystemExit(f"{told['unanswered']} requests were not answered within {WAIT:.0f} s")
    cores = [(last - first) / spent for first, last in zip(before, after, strict=True)] + [told["cpu"] / spent]
    return [sum_up(told["groups"][one.name], seconds) for one in groups], ", ".join(f"{used:.2f}" for used in cores)


def sum_up(clients: Sequence[Mapping[str, Any]], seconds: float) -> Found:
    waits, refusals = (sorted(1000 * spent for one in clients for spent in one[key]) for key in ("served", "refused"))
    faults = sum((Counter(one["faults"]) for one in clients), Counter[str]())
    parts = [((one["asked"] + one["unsent"]) / seconds, len(one["served"]) / seconds) for one in clients]
    asked, unsent = sum(asked for asked, _ in parts), sum(one["unsent"] for one in clients)
    return Found(asked, len(waits) / seconds, len(refusals) / seconds, parts, waits, refusals, faults, unsent)


def cpu(server: Running) -> tuple[float, float]:
    """Seconds that web workers and engines have computed so far."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    engines = set(server.engines())
    web = {server.process.pid, *map(int, children)} - engines
    return sum(map(used, web)), sum(map(used, engines))


def used(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    return 0.0


def tell(load: str, found: Found, cores: str) -> None:
    row = f"{found.asked:.0f} | {found.served:.0f} | {times(found.waits)}"
    print(f"| {load} | {row} | {found.refused:.0f} | {times(found.refusals)} | {cores} |", flush=True)
    if found.unsent:
        print(f"\n{found.unsent} of these were not sent, since all connections of their clients were waiting.\n")


def judge(name: str, values: Sequence[float], aim: float, fold: Callable[..., float], *, at_least: bool = True) -> None:
    """``fold`` makes one of the values, which is held against the aim."""
    value = fold(values)
    word = "holds" if (value >= aim if at_least else value <= aim) else "**falls short**"
    all_of_them = f" ({', '.join(f'{one:.2f}' for one in sorted(values))})" if len(values) > 1 else ""
    print(f"- {name}: {value:.2f}{all_of_them}; {aim:g} at {'least' if at_least else 'most'}: {word}", flush=True)


def times(sorted_times: Sequence[float]) -> str:
    return " | ".join(f"{quantile(sorted_times, share):.0f}" for share in (0.5, 0.99))


def quantile(sorted_times: Sequence[float], share: float) -> float:
    return sorted_times[min(len(sorted_times) - 1, int(len(sorted_times) * share))] if sorted_times else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
