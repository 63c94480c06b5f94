"""Trains ``default/models/faces.safetensors``: cartoon faces of 64×64 from 128 latent numbers, without labels.

    python default/recipes/faces.py --out default/models/faces.safetensors

w is laid out by hand: a face's features (``portrait.FEATURES``), each brought to mean 0 and standard deviation 1, in an orthonormal
frame of w space. The mapping network learns z ↦ w, the synthesis network w ↦ picture. So directions in w are known, not searched for:
they are columns of the frame. Where levels get different styles, the picture to learn takes each feature from the level it belongs to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import directions
import mapping
import recogniser
import root  # noqa: F401
import torch
from frame import SEED, Frame
from mapping import Block
from people import CLOSED, KNOB, features
from portrait import FEATURES, INDEX, MOOD, PAINTED, SHAPE, draw
from torch import Tensor
from training import Phase, Trainer, prepare, show

from api.models.nets.precure import Generator

SIZE, DEPTH, LEVELS, FIRST, LAST = 128, 6, 5, 128, 16
PHASES = ((3, 64, 0.17), (4, 32, 0.2), (5, 32, 0.63))  # levels, batch, share of the steps
FINE = ("eyes", "glasses", "square", *MOOD)
HOME = torch.tensor(
    [0 if n in ("turn", "tilt") else 2 if n in FINE else 1 if n in SHAPE else 3 for n in FEATURES]
)  # level that rules a feature


def make_frame(size: int = SIZE) -> Frame:
    generator = torch.Generator().manual_seed(SEED)
    return Frame.make(features(torch.randn(100_000, size, generator=generator)), size, generator)


def blocks() -> list[Block]:
    """Which latent coordinates make which features, and how many units that takes."""
    found = [Block((KNOB[name],), (INDEX[name],), 4) for name in (*SHAPE, "intensity")]
    found.append(Block((KNOB["valence"], KNOB["arousal"]), (INDEX["valence"], INDEX["arousal"]), 7))
    units = {"skin": 7, "hair": 17, "iris": 7, "shirt": 15, "background": 19}
    for name in PAINTED:
        knobs = (KNOB[name], KNOB[f"{name}_2"]) if name in CLOSED else (KNOB[name],)
        found.append(Block(knobs, tuple(INDEX[f"{name}_{c}"] for c in "rgb"), units[name]))
    return found


@dataclass(frozen=True)
class Lesson:
    """Draws batches of styles and the pictures that belong to them; ``paint`` is ``portrait.draw``, compiled or not."""

    frame: Frame
    size: int
    paint: Callable[[Tensor, int], Tensor] = draw

    def __call__(self, count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows, others = (vary(features(torch.randn(count, self.size, generator=generator)), self.frame, generator) for _ in range(2))
        cut = cuts(count, generator)
        level = torch.arange(LEVELS)[None]
        ws = torch.where((level < cut[:, None])[..., None], self.frame.styles(rows)[:, None], self.frame.styles(others)[:, None])
        mixed = torch.where(HOME[None] < cut[:, None], rows, others)
        return ws, self.paint(mixed, side)


def cuts(count: int, generator: torch.Generator) -> Tensor:
    """For each picture the level from which on a second style rules; mostly none."""
    chance = torch.tensor([0.0, 0.03, 0.08, 0.19, 0.0, 0.70])
    return torch.multinomial(chance, count, replacement=True, generator=generator)


def vary(rows: Tensor, frame: Frame, generator: torch.Generator) -> Tensor:
    """Makes some of the faces what users make of them: blends, truncated and exaggerated ones, faces moved along directions."""
    count = len(rows)
    kind = torch.rand(count, 1, generator=generator)
    amount = torch.rand(count, 1, generator=generator)
    blend = rows + (rows.roll(1, 0) - rows) * amount
    scaled = frame.mean + (rows - frame.mean) * (1.6 * amount)
    pushed = push(rows, generator)
    return torch.where(kind < 0.12, blend, torch.where(kind < 0.24, scaled, torch.where(kind < 0.56, pushed, rows)))


def push(rows: Tensor, generator: torch.Generator) -> Tensor:
    moved = rows.clone()
    count = len(rows)
    moved[:, INDEX["valence"]] += torch.randn(count, generator=generator) * 1.4
    moved[:, INDEX["arousal"]] += torch.randn(count, generator=generator) * 1.4
    moved[:, INDEX["intensity"]] += torch.randn(count, generator=generator) * 0.6
    some = torch.rand(count, len(SHAPE), generator=generator) < 0.15
    some[:, INDEX["glasses"]] |= torch.rand(count, generator=generator) < 0.4
    moved[:, : len(SHAPE)] += torch.randn(count, len(SHAPE), generator=generator) * 0.8 * some
    return moved


def importance(side: int) -> Tensor:
    """Errors about eyes and mouth count more: there people look."""
    line = (torch.arange(side) + 0.5) * (2 / side) - 1
    return 1 + 4 * torch.exp(-(line[None].square() / 0.18 + (line[:, None] - 0.08).square() / 0.14))


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
    generator = Generator(SIZE, DEPTH, LEVELS, FIRST, LAST)
    prepare(generator.synthesis)
    lesson = Lesson(frame, SIZE, torch.compile(draw, dynamic=False) if options.compile else draw)
    trainer = Trainer(
        generator.synthesis, lesson, phases(options.steps), options.work / "faces.pt", options.seed, options.compile, weight=importance
    )
    if options.resume and trainer.snapshot.exists():
        trainer.resume()
    show("faces", trainer.run(), trainer.done, trainer.total)
    publish(options, frame, generator, trainer)


def publish(options: argparse.Namespace, frame: Frame, generator: Generator, trainer: Trainer) -> None:
    fit = mapping.Fit(SIZE, DEPTH, blocks(), 0)
    show("mapping", mapping.train(fit, features, frame, options.mapping_steps, options.seed), 0, options.mapping_steps, 1000)
    mapping.install(fit, frame, generator.mapping)
    checkpoint.finish(generator, trainer.average.values)
    shape = {"size": SIZE, "depth": DEPTH, "levels": LEVELS, "first_channels": FIRST, "last_channels": LAST, "categories": 1}
    checkpoint.write(options.out, generator, shape, None)
    directions.save(options.out.with_suffix(".directions.npz"), directions.directions(frame))
    judge = recogniser.Recogniser()
    losses = recogniser.train(judge, options.recogniser_steps, options.seed, options.compile)
    show("recogniser", losses, 0, options.recogniser_steps)
    recogniser.save(judge, options.out.with_suffix(".recogniser.npz"))
    judge = recogniser.load(options.out.with_suffix(".recogniser.npz"))
    directions.tell(directions.check(generator, judge, frame, options.check_faces))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--steps", type=int, default=10900, help="batches for the synthesis network")
    parser.add_argument("--mapping-steps", type=int, default=6000, help="batches for the mapping network")
    parser.add_argument("--recogniser-steps", type=int, default=3000, help="batches for the network that judges the result")
    parser.add_argument("--check-faces", type=int, default=200, help="faces by which the directions are judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("run/training"), help="folder for snapshots")
    parser.add_argument("--resume", action="store_true", help="go on from the snapshot")
    parser.add_argument("--compile", action="store_true", help="compile the training step; needs a C++ compiler, doubles the speed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
