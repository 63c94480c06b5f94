"""How long pictures take to become files, and how large they get, beside Pillow's defaults.

``python -m bench encode`` prints the tables of docs/performance.md. The pictures are synthetic and the same on every machine.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api.engine.codec import Encoding, Format, encode
from api.models.jobs import Pixels

RECIPE = {"Seed": 7, "Model": "faces", "Size": "64x64", "Psi": 0.7, "SD": 1.0, "Noise": "random"}
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp", "avif")


def cloud(rng: np.random.Generator, size: int, slope: float) -> NDArray[np.float64]:
    """A random field, unit variance, whose amplitude falls with frequency as f**-slope, as in photographs (Field 1987: about 1)."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = 1 / size
    spectrum = (rng.standard_normal(f.shape) + 1j * rng.standard_normal(f.shape)) / f**slope
    field: NDArray[np.float64] = np.fft.irfft2(spectrum, s=(size, size), axes=(0, 1))
    return field / float(field.std())


def quantize(field: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


def photograph(size: int, noise: float = 2.0) -> Pixels:
    """Detail at every scale, colours that follow the brightness, a sensor's noise of ``noise`` steps."""
    rng = np.random.default_rng(1)
    light = cloud(rng, size, 1.3)
    colours = [40 * light + 18 * cloud(rng, size, 1.5) for _ in range(3)]
    return quantize(128 + np.stack(colours, -1) + noise * rng.standard_normal((size, size, 3)))


def soft(size: int) -> Pixels:
    """A photograph without noise, as generators paint."""
    return photograph(size, 0.5)


def drawing(size: int) -> Pixels:
    """Flat shapes with smooth edges."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[: 2 * size, : 2 * size] / (2 * size)
    canvas = np.full((2 * size, 2 * size, 3), 230.0)
    for _ in range(25):
        (cx, cy), (a, b) = rng.random(2), rng.uniform(0.03, 0.3, 2)
        canvas[((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1] = rng.integers(0, 256, 3)
    return quantize(canvas.reshape(size, 2, size, 2, 3).mean((1, 3)))


def shaded(size: int) -> Pixels:
    """The same shapes in soft light, as a renderer shades cartoon faces."""
    y, x = np.mgrid[:size, :size] / size
    light = 0.75 + 0.25 * np.sin(3 * x + 2 * y + 1) + 0.02 * cloud(np.random.default_rng(3), size, 1.5)
    return quantize(drawing(size) * light[:, :, None])


def static(size: int) -> Pixels:
    """Nothing that can be compressed."""
    return np.random.default_rng(4).integers(0, 256, (size, size, 3), np.uint8)


PICTURES: Mapping[str, Callable[[int], Pixels]] = {
    "photograph": photograph,
    "soft": soft,
    "shaded": shaded,
    "drawing": drawing,
    "static": static,
}


@dataclass(frozen=True)
class Row:
    format: str
    picture: str
    size: int
    seconds: tuple[float, float]  # ours, Pillow's
    cpu: float  # seconds of all cores that ours takes
    bytes: tuple[int, int]

    def __str__(self) -> str:
        (ours, theirs), (small, large) = self.seconds, self.bytes
        cells = [self.format, f"{self.picture} {self.size}²", clock(ours), clock(self.cpu), clock(theirs), f"{theirs / ours:.1f} ×"]
        return line([*cells, f"{small / 1000:,.1f}", f"{large / 1000:,.1f}", f"{100 * (small / large - 1):+.0f} %"])


HEADINGS = ["format", "picture", "time", "of all cores", "Pillow", "faster", "kB", "Pillow kB", "larger"]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def clock(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms" if seconds < 1e-2 else f"{seconds * 1e3:.0f} ms"


def save_default(image: Pixels, name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name.upper())
    return buffer.getvalue()


def measure(calls: Sequence[Callable[[], bytes]], budget: float) -> list[tuple[float, float]]:
    """The least seconds that each call took, and the least of all cores, in turns, so that a busy moment of the machine meets all."""
    best = [(float("inf"), float("inf"))] * len(calls)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or best[-1][0] == float("inf"):
        for index, call in enumerate(calls):
            start, used = time.perf_counter(), time.process_time()
            call()
            took, least = best[index]
            best[index] = min(took, time.perf_counter() - start), min(least, time.process_time() - used)
    return best


def compare(name: Format, picture: str, size: int, budget: float) -> Row:
    image, encoding = PICTURES[picture](size), Encoding(name)
    calls = (lambda: encode(image, encoding, RECIPE)), (lambda: save_default(image, name))
    (ours, cpu), (theirs, _) = measure(calls, budget)
    return Row(name, picture, size, (ours, theirs), cpu, (len(calls[0]()), len(calls[1]())))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench encode", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], help="edges of the square pictures, in pixels")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each row; the least time counts")
    options = parser.parse_args(argv)
    print(line(HEADINGS))
    print(line(["---", "---", *["---:"] * 7]))
    for name, picture, size in itertools.product(options.formats, PICTURES, options.sizes):
        print(compare(name, picture, size, options.budget), flush=True)
    print(f"\nThe least times of several runs, {os.cpu_count()} cores. Ours hold a recipe and the mark of their origin, Pillow's nothing.")
    return 0
