"""Counts and durations of all processes of a host in one place, for ``/metrics``.

Each process adds up what it sees in memory and adds the sums to one SQLite file a few times a second, so the totals
are right across workers and engines, survive a recycled worker, and leave no file behind per process.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from api.errors import Busy

log = logging.getLogger(__name__)
PERIOD = 0.5
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Measure(NamedTuple):
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()  # a histogram, if there are any


MEASURES = {
    "requests": Measure("HTTP requests answered", ("method", "route", "status")),
    "request_seconds": Measure("Time from a request's head to its answer's end", ("route",), SECONDS),
    "refusals": Measure("Computing requests refused by a limit or for want of capacity", ("error",)),
    "pictures": Measure("Pictures made", ("model",)),
    "recalled": Measure("Pictures that were not made, since a host had made them before", ("model",)),
    "batches": Measure("Batches computed", ("model",)),
    "batch_size": Measure("Pictures in a batch", ("model",), (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "queue_seconds": Measure("Time that a picture waited for its device", ("model",), SECONDS),
    "batch_seconds": Measure("Time in which a batch was computed", ("model",), SECONDS),
    "encode_seconds": Measure("Time in which a picture was encoded", ("model",), SECONDS),
    "reloads": Measure("Changed configurations that were applied, or refused", ("outcome",)),
    "engine_restarts": Measure("Engine processes that replaced one that had died", ("device",)),
}

SCHEMA = """
CREATE TABLE IF NOT EXISTS totals (name TEXT, labels TEXT, bucket INTEGER, value REAL, PRIMARY KEY (name, labels, bucket)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS processes (pid INTEGER PRIMARY KEY, role TEXT, born TEXT, resident INTEGER);
"""
ADD = "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
SUM = -1  # the bucket that holds a histogram's sum

Key = tuple[str, tuple[str, ...], int]


class Telemetry:
    """One process's part. ``count`` and ``observe`` are cheap and may be called from any thread."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role
        self.pending: dict[Key, float] = {}
        self.guard = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def count(self, name: str, value: float = 1.0, **labels: str) -> None:
        self.add((name, tuple(labels.values()), 0), value)

    def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
        """Puts ``value`` into the histogram ``name``, so many ``times``."""
        bucket = bisect.bisect_left(MEASURES[name].buckets, value)
        self.add((name, tuple(labels.values()), bucket), times)
        self.add((name, tuple(labels.values()), SUM), times * value)

    def add(self, key: Key, value: float) -> None:
        with self.guard:
            self.pending[key] = self.pending.get(key, 0.0) + value

    def start(self) -> None:
        self.thread = threading.Thread(target=self.run, name="telemetry", daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.wait(PERIOD):
            self.flush()

    def close(self) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join()
        self.flush()
        with suppress(sqlite3.OperationalError), connect(self.folder) as base:
            base.execute("DELETE FROM processes WHERE pid = ?", (os.getpid(),))

    def flush(self) -> None:
        """Adds what has come since the last time; keeps it for the next time if the disk says no."""
        with self.guard:
            pending, self.pending = self.pending, {}
        rows = [(name, json.dumps(labels), bucket, value) for (name, labels, bucket), value in pending.items()]
        try:
            with connect(self.folder) as base:
                base.executemany(ADD, rows)
                base.execute(
                    "INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?)", (os.getpid(), self.role, birth(os.getpid()), resident())
                )
        except sqlite3.OperationalError:
            for key, value in pending.items():
                self.add(key, value)

    def expose(self, ready: Mapping[str, bool] | None = None) -> bytes:
        """All processes' numbers in Prometheus' text format, and which models are ``ready`` as this process sees it. Raises ``Busy``."""
        self.flush()
        registry = CollectorRegistry()
        try:
            registry.register(Totals(self.folder, ready or {}))
        except sqlite3.OperationalError as error:
            log.error("the numbers cannot be read: %s", error)
            raise Busy("the numbers cannot be read") from error
        return generate_latest(registry)


class connect:  # noqa: N801
    """A transaction on the file, closed behind it: a connection kept open would not survive a fork."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(folder / "metrics.sqlite3", timeout=5.0)

    def __enter__(self) -> sqlite3.Connection:
        self.base.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + SCHEMA)
        return self.base

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.base.commit()
        self.base.close()


class Totals(Collector):
    """Reads the file for the Prometheus library."""

    def __init__(self, folder: Path, ready: Mapping[str, bool]) -> None:
        self.ready = ready
        with connect(folder) as base:
            self.totals = base.execute("SELECT name, labels, bucket, value FROM totals").fetchall()
            self.processes = base.execute("SELECT pid, role, born, resident FROM processes").fetchall()
            dead = [(pid,) for pid, _, born, _ in self.processes if birth(pid) != born]
            base.executemany("DELETE FROM processes WHERE pid = ?", dead)

    def collect(self) -> Iterator[Metric]:
        table: dict[str, dict[tuple[str, ...], dict[int, float]]] = {}
        for name, labels, bucket, value in self.totals:
            table.setdefault(name, {}).setdefault(tuple(json.loads(labels)), {})[bucket] = value
        for name, measure in MEASURES.items():
            yield (
                self.histogram(name, measure, table.get(name, {})) if measure.buckets else self.counter(name, measure, table.get(name, {}))
            )
        yield self.memory()
        family = GaugeMetricFamily("stylegan_model_ready", "Whether a model can be served: 1 or 0", labels=("model",))
        for model_id, ready in self.ready.items():
            family.add_metric((model_id,), float(ready))
        yield family

    def counter(self, name: str, measure: Measure, rows: dict[tuple[str, ...], dict[int, float]]) -> Metric:
        family = CounterMetricFamily(f"stylegan_{name}", measure.help, labels=measure.labels)
        for labels, values in rows.items():
            family.add_metric(labels, values[0])
        return family

    def histogram(self, name: str, measure: Measure, rows: dict[tuple[str, ...], dict[int, float]]) -> Metric:
        family = HistogramMetricFamily(f"stylegan_{name}", measure.help, labels=measure.labels)
        bounds = [str(float(bound)) for bound in measure.buckets] + ["+Inf"]
        for labels, values in rows.items():
            total, buckets = 0.0, []
            for index, bound in enumerate(bounds):
                total += values.get(index, 0.0)
                buckets.append((bound, total))
            family.add_metric(labels, buckets, values.get(SUM, 0.0))
        return family

    def memory(self) -> Metric:
        family = GaugeMetricFamily("stylegan_resident_bytes", "Memory of a process", labels=("role", "pid"))
        for pid, role, born, size in self.processes:
            if birth(pid) == born:
                family.add_metric((role, str(pid)), size)
        return family


def birth(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: a pid alone may have passed to another."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
