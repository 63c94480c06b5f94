"""When requests come, and what for: read from a file, or drawn.

A trace is text with one request a line: ``second model [count [steps [client]]]``, parted by commas or blanks. ``count`` pictures of
``steps`` steps are asked for; 1 and the model's own if unset. The lane is fair among clients; whose client is not told is one of its own.
Empty lines and what follows a ``#`` are passed over, and so is a first line of headings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
FIELDS = ("second", "model", "count", "steps", "client")


class BadFile(Exception):  # noqa: N818
    """A file that cannot be used: its name, the line, what is wrong."""


@dataclass
class Trace:
    """Requests in the order of their coming. ``models`` and ``clients`` are numbers; a client below 0 is one of its own."""

    seconds: NDArray[np.float64]
    names: list[str]
    models: NDArray[np.int32]
    counts: NDArray[np.int32]
    steps: NDArray[np.int32]  # 0: the model's own
    clients: NDArray[np.int32]
    callers: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def span(self) -> float:
        """Seconds from the beginning to the last request."""
        return float(self.seconds[-1]) if len(self) else 0.0

    @classmethod
    def of(cls, seconds: NDArray[np.float64], model: str) -> Trace:
        """Requests for one picture of one model each."""
        one, none = np.ones(len(seconds), np.int32), np.zeros(len(seconds), np.int32)
        return cls(seconds, [model], none, one, none, none - 1)


def read(path: Path) -> Trace:
    """Raises ``BadFile``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {error.strerror if isinstance(error, OSError) else 'is not text'}") from None
    rows = list(parse(path, lines))
    if not rows:
        raise BadFile(f"{path}: no requests in it")
    rows.sort(key=lambda row: row[0])
    names, callers = sorted({row[1] for row in rows}), sorted({row[4] for row in rows if row[4]})
    model, caller = ({name: number for number, name in enumerate(found)} for found in (names, callers))
    return Trace(
        np.array([row[0] for row in rows]),
        names,
        np.array([model[row[1]] for row in rows], np.int32),
        np.array([row[2] for row in rows], np.int32),
        np.array([row[3] for row in rows], np.int32),
        np.array([caller.get(row[4], -1) for row in rows], np.int32),
        callers,
    )


def parse(path: Path, lines: list[str]) -> Iterator[tuple[float, str, int, int, str]]:
    for number, line in enumerate(lines, 1):
        cells = line.partition("#")[0].replace(",", " ").split()
        if not cells or (number == 1 and cells[0] == FIELDS[0]):
            continue
        try:
            yield row(cells)
        except ValueError as error:
            raise BadFile(f"{path}:{number}: {error}") from None


def row(cells: list[str]) -> tuple[float, str, int, int, str]:
    """Raises ``ValueError`` with what is wrong."""
    if not 2 <= len(cells) <= len(FIELDS):
        raise ValueError(f"{len(cells)} fields instead of 2 to {len(FIELDS)}: {', '.join(FIELDS)}")
    second, model, count, steps, client = (*cells, *("", "", "")[len(cells) - 2 :])
    try:
        came = float(second)
    except ValueError:
        came = math.nan
    if not 0 <= came < math.inf:
        raise ValueError(f"second: {second!r} is not a number of seconds")
    return came, model, whole("count", count or "1", 1), whole("steps", steps or "0", 0), client


def whole(name: str, text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= 10_000:
        raise ValueError(f"{name}: {text!r} is not a whole number from {least} to 10000")
    return int(text)


def write(path: Path, trace: Trace) -> None:
    lines = [" ".join(FIELDS)]
    for second, model, count, steps, client in zip(trace.seconds, trace.models, trace.counts, trace.steps, trace.clients, strict=True):
        cells = [f"{second:.6f}", trace.names[model], str(count), str(steps), trace.callers[client] if client >= 0 else ""]
        lines.append(" ".join(cells).rstrip())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def poisson(rate: float, seconds: float, seed: int, model: str, peak: float = 1.0) -> Trace:
    """``rate`` requests a second on the average over ``seconds``, independent of each other.

    With a ``peak`` above 1 they come in the curve of a day, whose busiest moment, in the middle, has that much of the average. The curve
    is von Mises', exp(k · cos θ) / I₀(k), which has one hump of any sharpness.
    """
    random = np.random.default_rng(seed)
    count = random.poisson(rate * seconds)
    if peak <= 1.0:
        return Trace.of(np.sort(random.random(count) * seconds), model)
    share = np.linspace(0.0, 1.0, 10_001)
    density = np.exp(sharpness(peak) * np.cos(2 * np.pi * (share - 0.5)))
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return Trace.of(np.sort(np.interp(random.random(count), total / total[-1], share)) * seconds, model)


def sharpness(peak: float) -> float:
    """k for which exp(k) / I₀(k) is ``peak``."""
    low, high = 0.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.exp(middle) / float(np.i0(middle)) < peak else (low, middle)
    return low
