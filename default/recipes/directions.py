"""Directions in the w space of ``faces``, known from its frame: what they are, their file, and how well they work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import root  # noqa: F401
import torch
from frame import Frame
from numpy.typing import NDArray
from people import MOODS, Face
from portrait import FEATURES, INDEX, SHAPE
from recogniser import Recogniser, recognise
from torch import Tensor

from api.models.nets.precure import Generator

FAR, MORE = 2.4, 0.4  # so far even a face of the opposite mood turns clearly; and it shows its mood more
CHANGES: dict[str, dict[str, float]] = {
    "happy": {"valence": FAR, "intensity": MORE},
    "sad": {"arousal": -FAR, "intensity": MORE},
    "angry": {"valence": -4.0, "arousal": 0.5, "intensity": MORE},  # the opposite of most faces, and beside the sad
    "surprised": {"arousal": FAR, "intensity": MORE},
    "neutral": {"intensity": -1.2},
    "glasses": {"glasses": 1.0},
    "square_glasses": {"square": 1.0},
    "long_hair": {"length": 0.8},
    "curly_hair": {"curl": 1.0},
    "fringe": {"fringe": 0.8},
    "bun": {"bun": 1.0},
    "light_hair": {"hair_r": 0.4, "hair_g": 0.38, "hair_b": 0.28},
    "red_hair": {"hair_r": 0.35, "hair_g": -0.05, "hair_b": -0.12},
    "dark_skin": {"skin_r": -0.3, "skin_g": -0.3, "skin_b": -0.28},
    "large_eyes": {"eyes": 0.8},
    "wide_face": {"width": 0.8},
    "turn": {"turn": 1.0},
    "tilt": {"tilt": 1.0},
}
TRAITS = [name for name in SHAPE if name not in ("square", "turn", "tilt")] + [
    "skin_r",
    "hair_r",
    "hair_g",
    "shirt_g",
    "background_r",
    "background_b",
]


def directions(frame: Frame) -> dict[str, NDArray[np.float32]]:
    """The w (size,) to add, by name; times 1 the change is plain, times -1 it is the opposite."""
    found = {}
    for name, change in CHANGES.items():
        row = torch.zeros(len(FEATURES))
        for feature, amount in change.items():
            row[INDEX[feature]] = amount
        found[name] = frame.direction(row).numpy()
    return found


def save(path: Path, vectors: dict[str, NDArray[np.float32]]) -> None:
    np.savez(path, allow_pickle=False, **vectors)


@dataclass(frozen=True)
class Verdict:
    """Of the faces moved by a direction: ``share`` that show it (before: ``before``), and how far other traits drift on average.

    ``drift`` is the mean absolute change of the recognised traits that should stay, in standard deviations of each trait.
    """

    name: str
    before: float
    share: float
    drift: float


@torch.no_grad()
def check(generator: Generator, recogniser: Recogniser, frame: Frame, count: int = 200, seed: int = 0) -> list[Verdict]:
    """Moves ``count`` faces along each mood and along ``glasses``, and has the recogniser judge them."""
    z = np.random.RandomState(seed).randn(count, generator.size).astype(np.float32)
    w = generator.mapping(torch.from_numpy(z))
    before = recognise(recogniser, render(generator, w))
    verdicts = []
    for name in (*MOODS, "glasses"):
        after = recognise(recogniser, render(generator, w + torch.from_numpy(directions(frame)[name])))
        verdicts.append(Verdict(name, share(name, before), share(name, after), drift(name, before, after, frame)))
    return verdicts


def render(generator: Generator, w: Tensor) -> NDArray[np.uint8]:
    rows = torch.split(w[:, None].expand(-1, generator.levels, -1), 32)  # larger batches fall out of the cache
    images = torch.cat([generator.synthesis(part) for part in rows])
    return np.asarray((images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def share(name: str, faces: list[Face]) -> float:
    return sum(face.glasses > 0.5 if name == "glasses" else face.mood == name for face in faces) / len(faces)


def drift(name: str, before: list[Face], after: list[Face], frame: Frame) -> float:
    stay = [INDEX[trait] for trait in TRAITS if trait != name]
    change = np.stack([face.row() for face in after]) - np.stack([face.row() for face in before])
    return float(np.abs(change[:, stay] / frame.deviation[stay].numpy()).mean())


def tell(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        figures = {key: value for key, value in asdict(verdict).items() if key != "name"}
        print(f"{verdict.name:10}", "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
