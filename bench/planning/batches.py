"""How long a model's batches take on its device, without a server: ``python -m bench.planning.batches TOML MODEL SECONDS`` prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from api.conf import load_config
from api.engine.codec import Encoding, encode
from api.engine.host import settle, tune
from api.engine.lane import CALM, LARGE
from api.engine.teams import choose_team
from api.models.base import go_on
from api.models.jobs import Diffuse, Generate, Job, Output

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Bench:
    """A model on its device, used as the lane uses it: by as many threads as a CPU has cores, each with batches of its own."""

    def __init__(self, path: str, model_id: str) -> None:
        tune()
        from api.models.device import prepare_device, use_cores
        from api.models.registry import load_model

        self.config, self.model_id = load_config(path), model_id
        self.device = self.config.device(model_id)
        self.threads = prepare_device(self.device, self.config.server.engine.threads)
        self.use = use_cores if self.device == "cpu" else lambda count: None
        self.use(1)
        self.model = load_model(self.config, model_id)
        self.team = choose_team(self.model, self.threads, self.use)
        settle()
        self.long = self.model.info.long
        self.most = self.config.models[model_id].max_batch or self.config.server.engine.max_batch
        self.steps = int(self.model.info.extra["steps"]) if self.long else 0
        self.seeds = iter(range(10**9))
        self.outputs: list[Output] = []

    def jobs(self, count: int) -> list[Job]:
        return [self.model.prepare(self.job(next(self.seeds))) for _ in range(count)]

    def job(self, seed: int) -> Job:
        info = self.model.info
        if self.long:
            return Diffuse(model=info.id, seed=seed, prompt=info.description or info.name, steps=self.steps)
        return Generate(model=info.id, seed=seed)

    def sizes(self) -> list[int]:
        """Those that the lane makes."""
        most = self.most if self.long else max(1, self.most // self.threads)
        return sorted({size for size in (*SIZES, most) if size <= most})

    def measure(self, seconds: float, threads: int) -> dict[int, list[float]]:
        """Seconds of batches of each size, while so many threads compute them."""
        found: dict[int, list[float]] = {size: [] for size in self.sizes()}
        end = time.perf_counter() + seconds

        def run() -> None:
            self.use(self.threads if self.long else 1)
            while time.perf_counter() < end or not all(found.values()):
                for size in found:  # in turns, so that a busy moment of the machine meets all
                    jobs, start = self.jobs(size), time.perf_counter()
                    self.outputs = list(self.model.run(jobs, go_on))
                    found[size].append(time.perf_counter() - start)

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(run) for _ in range(threads)]:
                done.result()
        return found

    def measure_alone(self, seconds: float) -> float:
        """Median seconds of a lone picture."""
        self.use(self.team)
        times, end = list[float](), time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 3:
            jobs, start = self.jobs(1), time.perf_counter()
            self.model.run(jobs, go_on)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def scatter(found: Mapping[int, Sequence[float]]) -> list[float]:
    """Twenty factors of a batch's median time, each as likely as the others."""
    ratios = sorted(value / statistics.median(times) for times in found.values() for value in times)
    return [round(ratios[(2 * part + 1) * len(ratios) // 40], 3) for part in range(20)]


def main(path: str, model_id: str, seconds: float) -> None:
    bench = Bench(path, model_id)
    bench.measure(0.0, 1)
    alone = bench.measure(seconds, 1)
    apart = bench.threads == 1 or bench.long  # no two batches at a time
    together = alone if apart else bench.measure(seconds, bench.threads)
    encoding, recipe = Encoding("png"), {"Seed": bench.outputs[0].seed}
    begun, data = time.process_time(), [encode(output.image, encoding, recipe) for output in bench.outputs for _ in range(20)]
    encoding_each = (time.process_time() - begun) / len(data)
    report = {
        "seconds": {size: statistics.median(times) for size, times in alone.items()},
        "together": {size: statistics.median(times) for size, times in together.items()},
        "scatter": () if apart else scatter(together),
        "team": 1 if bench.long else bench.team,
        "alone": 0.0 if bench.long or bench.team == 1 else bench.measure_alone(seconds / 2),
        "calm": 0.0 if bench.model.info.parameters >= LARGE else CALM,
        "cores": (bench.threads if bench.long else 1) if bench.device == "cpu" else 0,
        "encode": encoding_each,
        "bytes": statistics.mean(map(len, data)),
        "steps": bench.steps,
        "max_batch": bench.most,
        "threads": bench.threads,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
