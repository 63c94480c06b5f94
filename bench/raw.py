"""The bare engine: the same model object, the same jobs, no server. Each core of a CPU computes batches of its own, with PNGs and without.

``python -m bench.raw TOML MODEL SECONDS`` prints JSON; with ``turns`` behind it milliseconds of one picture, for each line that it reads:
by one core, by the team of cores that the engine has for a lone picture, and by that team where pictures come as often as those of a lone
client, for whom something else is done between two of them.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from api.conf import load_config
from api.engine.codec import Encoding, encode
from api.engine.host import settle, tune
from api.engine.teams import choose_team
from api.models.base import go_on
from api.models.device import prepare_device, use_cores
from api.models.jobs import Generate, Output
from api.models.registry import load_model

BETWEEN = 0.002  # seconds


def main(path: str, model_id: str, seconds: float, turns: bool = False) -> None:
    config = load_config(path)
    cores = prepare_device(config.device(model_id), config.server.engine.threads)
    model = load_model(config, model_id)
    settle()
    seeds = itertools.count()

    def run(count: int) -> Sequence[Output]:
        return model.run([model.prepare(Generate(model=model_id, seed=next(seeds))) for _ in range(count)], go_on)

    best = max(1, (config.models[model_id].max_batch or config.server.engine.max_batch) // cores)
    team = choose_team(model, cores, use_cores)
    use_cores(1)
    for count in (1, best, 1, best):
        run(count)

    def single(width: int, pause: float = 0.0) -> float:
        """Milliseconds of a picture with its PNG, the median."""
        use_cores(width)
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            (output,) = run(1)
            encode(output.image, Encoding("png"), {"Seed": output.seed})
            times.append(1000 * (time.perf_counter() - begun))
            if pause:
                time.sleep(pause)
        return statistics.median(times)

    if turns:
        for _ in sys.stdin:
            print(single(1), single(team), single(team, BETWEEN), flush=True)
        return
    alone, by_team = single(1), single(team)

    def work(end: float, encoding: bool) -> int:
        use_cores(1)
        made = 0
        while time.perf_counter() < end:
            outputs = run(best)
            made += len(outputs)
            for output in outputs if encoding else ():
                encode(output.image, Encoding("png"), {"Seed": output.seed})
        return made

    def rate(encoding: bool) -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            made = sum(pool.map(work, [begun + seconds] * cores, [encoding] * cores))
        return made / (time.perf_counter() - begun)

    rates = {"batched_rate": rate(False), "encoded_rate": rate(True)}
    print(json.dumps({"single_ms": alone, "team_ms": by_team, **rates, "batch": best}))


if __name__ == "__main__":
    tune()
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:] == ["turns"])
