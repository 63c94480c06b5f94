"""The bare engine: the same model object, the same jobs, no server. ``python -m bench.raw TOML MODEL SECONDS`` prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time

from api.conf import load_config
from api.engine.codec import Encoding, encode
from api.models.device import prepare_device
from api.models.jobs import Generate
from api.models.registry import load_model


def stay(index: int, total: int, previews: object = None) -> None:
    """The step of a model that has no steps."""


def main(path: str, model_id: str, seconds: float) -> None:
    config = load_config(path)
    cores = prepare_device(config.device(model_id), config.server.engine.threads)
    model = load_model(config, model_id, cores)
    seeds = iter(range(10**9))

    def jobs(count: int) -> list[Generate]:
        return [model.prepare(Generate(model=model_id, seed=next(seeds))) for _ in range(count)]  # type: ignore[misc]

    best = config.models[model_id].max_batch or config.server.engine.max_batch
    for count in (1, best, 1, best):
        model.run(jobs(count), stay)
    singles, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        (output,) = model.run(jobs(1), stay)
        encode(output.image, Encoding("png"), {"Seed": output.seed})
        singles.append(time.perf_counter() - begun)
    made, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        made += len(model.run(jobs(best), stay))
    print(json.dumps({"single_ms": 1000 * statistics.median(singles), "batched_rate": made / spent, "batch": best}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
