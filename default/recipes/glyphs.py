"""Trains ``default/models/glyphs.safetensors``: letters and digits of 32×32 in many hands, one class per character.

    python default/recipes/glyphs.py --out default/models/glyphs.safetensors

As in ``faces``: w is laid out by hand (``frame``), the mapping network learns (z, class) ↦ w and the synthesis network w ↦ picture.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import lettering
import mapping
import root  # noqa: F401
import torch
from frame import SEED, Frame
from lettering import CHARACTERS, FONTS, INDEX, KNOBS, POSE, Lettering
from mapping import Block
from torch import Tensor
from training import Phase, Trainer, prepare, show

from api.models.nets.precure import Generator

SIZE, DEPTH, LEVELS, FIRST, LAST = 128, 6, 4, 128, 32
PHASES = ((3, 64, 0.25), (4, 48, 0.75))  # levels, batch, share of the steps
COLOURED = 2  # the level from which on colours are ruled; shapes are ruled by the levels before


def make_frame(size: int = SIZE) -> Frame:
    generator = torch.Generator().manual_seed(SEED)
    rows = lettering.features(torch.randn(100_000, size, generator=generator))
    return Frame.make(rows, size, generator, len(CHARACTERS))


def blocks() -> list[Block]:
    """Which latent coordinates make which features, and how many units that takes."""
    found = [Block((KNOBS.index(name),), (INDEX[name],), 3) for name in POSE]
    columns = {"font": tuple(INDEX[name] for name in FONTS)} | {n: tuple(INDEX[f"{n}_{c}"] for c in "rgb") for n in ("ink", "ground")}
    found.extend(Block((KNOBS.index(name), KNOBS.index(f"{name}_2")), columns[name], 15) for name in columns)
    return found


@dataclass(frozen=True)
class Lesson:
    """Draws batches of styles and the pictures that belong to them."""

    frame: Frame
    letters: Lettering
    size: int = SIZE

    def __call__(self, count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Styles (count, LEVELS, size) and pictures; some between two characters or with a class drawn
        towards the mean of all, as truncation does, some with a second style from level ``COLOURED`` on."""
        rows, others = (vary(self.draw_rows(count, generator), self.frame, generator) for _ in range(2))
        label, other = (torch.randint(len(CHARACTERS), (count,), generator=generator) for _ in range(2))
        blend = torch.rand(count, 1, generator=generator) * (torch.rand(count, 1, generator=generator) < 0.08)
        mixed = torch.rand(count, 1, generator=generator) < 0.2
        classes = self.frame.classes
        drawn = torch.rand(count, 1, generator=generator) < 0.1
        strength = torch.where(drawn, 0.3 + torch.rand(count, 1, generator=generator), 1.0)
        w = self.frame.styles(rows) + torch.lerp(classes[label], classes[other], blend) * strength
        fine = torch.where(mixed, self.frame.styles(others) + classes[other], w)
        ws = torch.where((torch.arange(LEVELS) < COLOURED)[None, :, None], w[:, None], fine[:, None])
        colours = torch.arange(rows.shape[1]) >= INDEX["ink_r"]
        seen = torch.where(mixed & colours, others, rows)
        fields = torch.lerp(self.letters.fields[label], self.letters.fields[other], blend[:, :, None, None])
        return ws, lettering.draw(fields, seen, side)

    def draw_rows(self, count: int, generator: torch.Generator) -> Tensor:
        return lettering.features(torch.randn(count, self.size, generator=generator))


def vary(rows: Tensor, frame: Frame, generator: torch.Generator) -> Tensor:
    """Makes some of the hands what users make of them: blends, truncated and exaggerated ones."""
    kind, amount = torch.rand(2, len(rows), 1, generator=generator)
    blend = rows + (rows.roll(1, 0) - rows) * amount
    scaled = frame.mean + (rows - frame.mean) * (1.5 * amount)
    return torch.where(kind < 0.15, blend, torch.where(kind < 0.3, scaled, rows))


def phases(steps: int) -> list[Phase]:
    last = len(PHASES) - 1
    return [
        Phase(levels, batch, max(1, round(steps * share)), 2e-3, 1e-4 if i == last else 1e-3)
        for i, (levels, batch, share) in enumerate(PHASES)
    ]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    frame = make_frame()
    generator = Generator(SIZE, DEPTH, LEVELS, FIRST, LAST, len(CHARACTERS))
    prepare(generator.synthesis)
    trainer = Trainer(
        generator.synthesis,
        Lesson(frame, Lettering.load()),
        phases(options.steps),
        options.work / "glyphs.pt",
        options.seed,
        options.compile,
    )
    if options.resume and trainer.snapshot.exists():
        trainer.resume()
    show("glyphs", trainer.run(), trainer.done, trainer.total)
    publish(options, frame, generator, trainer)


def publish(options: argparse.Namespace, frame: Frame, generator: Generator, trainer: Trainer) -> None:
    fit = mapping.Fit(SIZE, DEPTH, blocks(), len(CHARACTERS))
    show("mapping", mapping.train(fit, lettering.features, frame, options.mapping_steps, options.seed), 0, options.mapping_steps, 1000)
    mapping.install(fit, frame, generator.mapping)
    checkpoint.finish(generator, trainer.average.values)
    shape = {"size": SIZE, "depth": DEPTH, "levels": LEVELS, "first_channels": FIRST, "last_channels": LAST, "categories": len(CHARACTERS)}
    checkpoint.write(options.out, generator, shape, tuple(CHARACTERS))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--steps", type=int, default=6000, help="batches for the synthesis network")
    parser.add_argument("--mapping-steps", type=int, default=6000, help="batches for the mapping network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("run/training"), help="folder for snapshots")
    parser.add_argument("--resume", action="store_true", help="go on from the snapshot")
    parser.add_argument("--compile", action="store_true", help="compile the training step; needs a C++ compiler, doubles the speed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
