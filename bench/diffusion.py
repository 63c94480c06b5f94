"""``python -m bench diffusion``: the server against its own pipeline called directly, for one client and for eight at once.

The work is the same: one prompt after the other, the pipeline's scheduler, steps, guidance and size. Directly means the diffusers pipeline
in a process of its own, with the server's number of threads, one picture at a time and eight in a batch; pictures stay arrays there, while
the server also encodes them as PNG and sends them.

A machine's speed changes by more than the server costs, and so does that of a process from start to start. So both run side by side and are
asked in turns, a few seconds each, and are started anew several times. What counts is the median of the turns' ratios; their quartiles say
how far it can be trusted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from api.conf import load_config
from bench.serve import measure, running
from tests.serving import ROOT, free_port

PROMPT = "a smiling face with long red hair and round glasses, blue background"
EIGHT = 8
Turn = tuple[float, float]  # pictures a second of the pipeline, and of the server


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench diffusion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="default/config.toml")
    parser.add_argument("--model", default="tiny-diffusion")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="of each, between two starts")
    parser.add_argument(
        "--starts", type=int, default=4, help="of the server and of the pipeline: each process is a little faster or slower"
    )
    parser.add_argument("--direct", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.direct:
        answer_calls(options.config, options.model)
        return 0
    turns: dict[int, list[Turn]] = {1: [], EIGHT: []}
    for _ in range(options.starts):
        with both(options) as (where, child):
            for count, found in turns.items():
                found += [take_turns(child, where, options, count) for _ in range(options.turns)]
    report(options, turns)
    return 0


@contextlib.contextmanager
def both(options: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server's address, and the process that calls the pipeline."""
    port = free_port()
    where = f"http://127.0.0.1:{port}"
    environment = {"STYLEGAN_TOML": options.config, "PORT": str(port)}
    command = [sys.executable, "-m", "bench", "diffusion", "--direct", "--config", options.config, "--model", options.model]
    with (
        running([sys.executable, "main.py"], environment, f"{where}/readyz"),
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child,
    ):
        yield where, child
        child.communicate()


def take_turns(child: subprocess.Popen[str], where: str, options: argparse.Namespace, count: int) -> Turn:
    """``count`` at a time: what the pipeline alone makes, then the server."""
    assert child.stdin is not None
    assert child.stdout is not None
    print(json.dumps([count, options.seconds]), file=child.stdin, flush=True)
    seconds = float(child.stdout.readline())
    body = f'{{"model": "{options.model}", "prompt": "{PROMPT}", "seed": {{seed}}}}'
    found = measure(["bench.load", f"{where}/text2img/", str(count), str(options.seconds), body])
    if set(found["statuses"]) != {"200"}:
        raise SystemExit(f"{where}: {found['statuses']}")
    return count / seconds, 1000 / found["p50"] if count == 1 else found["rate"]


def answer_calls(config_file: str, model_id: str) -> None:
    """The pipeline alone: for each line of standard input, [pictures, seconds], the median time of one call on standard output."""
    import torch

    from api.models.device import prepare_device
    from api.models.diffusion.pipelines import Pipeline, open_pipeline, quiet

    config = load_config(config_file)
    conf = config.models[model_id]
    prepare_device(config.device(model_id), config.server.engine.threads)
    with quiet(), torch.inference_mode():
        pipeline: Pipeline = open_pipeline(conf.file, None, conf.diffusion, torch.float32).to(config.device(model_id))
        pipeline.set_progress_bar_config(disable=True)

        def call(count: int, seed: int) -> None:
            generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
            steps, guidance = conf.diffusion.steps, conf.diffusion.guidance
            pipeline([PROMPT] * count, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np")

        for line in sys.stdin:
            count, seconds = json.loads(line)
            print(clock(functools.partial(call, count), seconds), flush=True)


def clock(call: Callable[[int], None], seconds: float) -> float:
    call(0)
    spent: list[float] = []
    while sum(spent) < seconds or len(spent) < 3:
        began = time.perf_counter()
        call(len(spent))
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def report(options: Any, turns: dict[int, list[Turn]]) -> None:
    print(f"{options.model}, {time.strftime('%Y-%m-%d')}: {len(turns[1])} turns of {options.seconds:g} s, {options.starts} starts\n")
    print("| | pipeline alone | server | server ÷ pipeline | quartiles |\n|---|---|---|---|---|")
    singles = [(1000 / bare, 1000 / served) for bare, served in turns[1]]
    tell("one picture, ms", singles, lambda ratio: f"{ratio - 1:+.1%}")
    tell("pictures/s, eight at once", turns[EIGHT], lambda ratio: f"{ratio:.2f}")


def tell(name: str, turns: list[Turn], form: Callable[[float], str]) -> None:
    bare, served = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    low, middle, high = statistics.quantiles([served / bare for bare, served in turns], n=4, method="inclusive")
    print(f"| {name} | {bare:.1f} | {served:.1f} | {form(middle)} | {form(low)} … {form(high)} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
