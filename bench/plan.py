"""``python -m bench plan TRACE --gpus N``: what so many devices make of the requests of a trace, or how many a p95 takes.

The server's web workers, lanes and encoders are simulated with what pictures and requests cost (docs/planning.md).
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from bench.planning import arrivals, check, costs
from bench.planning.arrivals import BadFile, Trace
from bench.planning.costs import Costs
from bench.planning.simulate import Result, search, simulate


def main(argv: list[str]) -> int:
    options = parse(argv)
    try:
        return run(options)
    except BadFile as error:
        print(error, file=sys.stderr)
        return 2


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, help="requests, one a line: second model [count [steps [client]]]")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="devices")
    parser.add_argument("--p95", type=float, metavar="S", help="find the fewest devices that answer 95 %% of the requests within S seconds")
    parser.add_argument("--most", type=int, default=4096, metavar="N", help="with --p95: look no further")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="JSON or TOML: seconds of batches and requests; --measure writes it")
    drawn = parser.add_argument_group("requests drawn at random, instead of a trace")
    drawn.add_argument("--poisson", type=float, metavar="RATE", help="requests a second on the average")
    drawn.add_argument("--seconds", type=float, metavar="S", help="of a drawn trace; of each measurement (3)")
    drawn.add_argument(
        "--daily", type=float, default=1.0, metavar="PEAK", help="in a day's curve, whose busiest moment has PEAK times the average"
    )
    drawn.add_argument("--model", help="which; the only one of the costs if unset")
    drawn.add_argument("--seed", type=int, help="drawn, and told, if unset")
    drawn.add_argument("--save", type=Path, metavar="FILE", help="keep the trace")
    real = parser.add_argument_group("a real server on this machine")
    real.add_argument("--config", type=Path, default=Path("default/config.toml"), metavar="TOML")
    real.add_argument("--measure", metavar="MODEL", help="measure what the model costs here")
    real.add_argument("--check", action="store_true", help="measure, serve a trace, simulate the same, and compare")
    real.add_argument("--load", type=float, default=0.6, metavar="SHARE", help="with --check: of what 32 clients get")
    options = parser.parse_args(argv)
    if options.trace and options.poisson:
        parser.error("a trace or --poisson, not both")
    if options.poisson and not options.seconds:
        parser.error("--poisson needs --seconds")
    if options.gpus < 1 or options.most < 1 or min(options.poisson or 1, options.seconds or 1, options.p95 or 1) <= 0:
        parser.error("numbers have to be above 0")
    if not (options.trace or options.poisson or options.measure or options.check):
        parser.error("a trace, --poisson, --measure or --check is needed")
    if options.seed is None:
        options.seed = random.randrange(1 << 32)
    return options


def run(options: argparse.Namespace) -> int:
    """Raises ``BadFile``."""
    if options.check:
        return check.main(options.config, options.measure or options.model or "faces", options.seconds or 20.0, options.load, options.seed)
    if options.measure:
        measured = check.measured(options.config, options.measure, 3.0 if options.poisson else options.seconds or 3.0, options.seed)
        found = measured.costs
        rate, drag = f"{measured.rate:.0f} pictures/s with 32 clients", f"one takes {measured.drag:.2f} of its time without a server"
        print(f"{options.measure}: {rate}; {drag}")
        print(found.model_dump_json(indent=1, exclude_defaults=True))
        if options.costs:
            costs.write(options.costs, found)
    elif options.costs:
        found = costs.read(options.costs)
    else:
        raise BadFile("--costs FILE or --measure MODEL is needed")
    if options.trace or options.poisson:
        trace = arrivals.read(options.trace) if options.trace else draw(options, found)
        plan(trace, found, options)
    return 0


def draw(options: argparse.Namespace, found: Costs) -> Trace:
    model = options.model or (next(iter(found.models)) if len(found.models) == 1 else None)
    if model is None:
        raise BadFile(f"--model: which of {', '.join(found.models)}?")
    print(f"seed {options.seed}")
    trace = arrivals.poisson(options.poisson, options.seconds, options.seed, model, options.daily)
    if not len(trace):
        raise BadFile("--poisson: no requests in so few seconds")
    if options.save:
        arrivals.write(options.save, trace)
    return trace


def plan(trace: Trace, found: Costs, options: argparse.Namespace) -> None:
    """Raises ``BadFile`` where the costs of a model are missing."""
    for name in trace.names:
        if name not in found.models:
            raise BadFile(f"{options.costs}: models: nothing is told of {name!r}, which the trace asks for")
    print(f"{len(trace)} requests in {trace.span:.0f} s; costs: {found.note or options.costs}")
    if options.p95:
        result = search(trace, found, options.p95, options.most, options.seed)
        if result is None:
            raise BadFile(f"--p95: {options.most} devices are not enough")
    else:
        result = simulate(trace, found, options.gpus, options.seed)
    print(report(result))


def report(result: Result) -> str:
    p50, p95, p99 = (1000 * result.percentile(percent) for percent in (50, 95, 99))
    total = result.batches.total() or 1
    sizes = ", ".join(f"{size}: {100 * count / total:.1f} %" for size, count in sorted(result.batches.items()))
    return f"""devices {result.gpus}
pictures/s {result.rate:.1f}
p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms
requests answered {result.answered}, refused {result.refused}, too late {result.late}
at work: devices {100 * result.device:.0f} %, encoders {100 * result.encoder:.0f} %, web workers {100 * result.worker:.0f} %; \
CPU cores {result.cores:.1f} of all hosts
batches: {result.mean_batch:.2f} pictures on the average; {sizes}"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
