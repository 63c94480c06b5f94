"""Makes a contact sheet of a checkpoint's pictures: seeds 0, 1, 2 …, nothing picked, as the server makes them.

python default/recipes/sheet.py default/models/faces.safetensors docs/images/faces.png --rows 6 --columns 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import root  # noqa: F401
from numpy.typing import NDArray
from PIL import Image

from api.conf import Config
from api.models.base import Model
from api.models.jobs import Generate
from api.models.registry import load_model


def load(path: Path) -> Model:
    """The checkpoint as the server would load it, on the CPU."""
    return load_model(Config.model_validate({"models": {"sheet": {"file": str(path), "warmup": False}}}), "sheet")


def generate(model: Model, count: int, psi: float, start: int) -> NDArray[np.uint8]:
    """(count, height, width, 3): seeds from ``start`` on; a conditional model's labels in turn."""
    labels = model.info.labels or (None,)
    jobs = [Generate(model=model.info.id, seed=start + i, label=labels[i % len(labels)], psi=psi) for i in range(count)]
    return np.stack([output.image for output in model.run([model.prepare(job) for job in jobs], lambda index, total, previews=None: None)])


def arrange(pictures: NDArray[np.uint8], columns: int, gap: int = 0) -> NDArray[np.uint8]:
    """Pictures (N, height, width, 3) in rows from left to right, white where there are none."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    sheet[:count, :height, :width] = pictures
    sheet = sheet.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (height + gap), columns * (width + gap), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--psi", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the first picture's seed")
    parser.add_argument("--scale", type=int, default=1, help="enlarge pixels by this factor")
    options = parser.parse_args()
    pictures = generate(load(options.checkpoint), options.rows * options.columns, options.psi, options.seed)
    image = Image.fromarray(arrange(pictures, options.columns))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * options.scale, image.height * options.scale), Image.Resampling.NEAREST).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
