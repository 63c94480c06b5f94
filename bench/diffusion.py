"""``python -m bench diffusion``: the server against its own pipeline called directly, for one client and for eight at once.

The work is the same: one prompt after the other, the pipeline's scheduler, steps, guidance and size. Directly means the diffusers pipeline
in a process of its own, with the server's number of threads, one picture at a time and eight in a batch; pictures stay arrays there, while
the server also encodes them as PNG and sends them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from api.conf import load_config
from bench.serve import measure, running
from tests.serving import free_port

PROMPT = "a smiling face with long red hair and round glasses, blue background"
EIGHT = 8


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench diffusion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="default/config.toml")
    parser.add_argument("--model", default="tiny-diffusion")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many")
    parser.add_argument("--direct", action="store_true", help="measure the pipeline alone and print JSON")
    options = parser.parse_args(argv)
    if options.direct:
        print(json.dumps(call_directly(options.config, options.model, options.seconds)))
        return 0
    bare: list[dict[str, float]] = []
    served: dict[int, list[dict[str, Any]]] = {1: [], EIGHT: []}
    for _ in range(options.rounds):
        bare.append(
            measure(
                ["bench", "diffusion", "--direct", "--config", options.config, "--model", options.model, "--seconds", str(options.seconds)]
            )
        )
        call_server(options, served)
    report(options.model, bare, served)
    return 0


def call_directly(config_file: str, model_id: str, seconds: float) -> dict[str, float]:
    """Median seconds of a picture alone, and of eight in one batch."""
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

        return {"single": clock(lambda seed: call(1, seed), seconds), "eight": clock(lambda seed: call(EIGHT, seed), seconds)}


def clock(call: Any, seconds: float) -> float:
    call(0)
    spent: list[float] = []
    while sum(spent) < seconds or len(spent) < 3:
        began = time.perf_counter()
        call(len(spent))
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def call_server(options: argparse.Namespace, found: dict[int, list[dict[str, Any]]]) -> None:
    port = free_port()
    where = f"http://127.0.0.1:{port}"
    url, body = f"{where}/text2img/", f'{{"model": "{options.model}", "prompt": "{PROMPT}", "seed": {{seed}}}}'
    with running([sys.executable, "main.py"], {"STYLEGAN_TOML": options.config, "PORT": str(port)}, f"{where}/readyz"):
        for clients, results in found.items():
            measure(["bench.load", url, str(clients), "3", body])
            result = measure(["bench.load", url, str(clients), str(options.seconds), body])
            if set(result["statuses"]) != {"200"}:
                raise SystemExit(f"{url}: {result['statuses']}")
            results.append(result)


def report(model_id: str, bare: list[dict[str, float]], served: dict[int, list[dict[str, Any]]]) -> None:
    single, eight = min(found["single"] for found in bare), min(found["eight"] for found in bare)
    alone, crowd = min(result["p50"] for result in served[1]) / 1000, max(result["rate"] for result in served[EIGHT])
    print(f"{model_id}, {time.strftime('%Y-%m-%d')}: best of {len(bare)} rounds\n")
    print("| | pipeline alone | server | |\n|---|---|---|---|")
    print(f"| one picture, ms | {single * 1000:.1f} | {alone * 1000:.1f} | {alone / single - 1:+.1%} |")
    print(f"| pictures/s, eight at once | {EIGHT / eight:.2f} | {crowd:.2f} | {crowd * eight / EIGHT:.2f} of the pipeline's |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
