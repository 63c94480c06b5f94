"""Who is drawn: faces under readable names, their latents, random faces and captions. ``portrait`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import sqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from portrait import FEATURES, INDEX, MOOD, PAINTED, SHAPE, draw
from torch import Tensor

RGB = tuple[float, float, float]
Mood = Literal["happy", "surprised", "angry", "sad", "neutral"]

SKINS: dict[str, RGB] = {
    "pale": (0.99, 0.87, 0.78),
    "light": (0.96, 0.79, 0.66),
    "tan": (0.87, 0.66, 0.49),
    "brown": (0.70, 0.47, 0.32),
    "dark": (0.47, 0.30, 0.21),
}
HAIRS: dict[str, RGB] = {
    "black": (0.13, 0.11, 0.13),
    "brown": (0.40, 0.24, 0.14),
    "red": (0.78, 0.29, 0.12),
    "blond": (0.95, 0.77, 0.38),
    "white": (0.87, 0.87, 0.90),
    "blue": (0.22, 0.42, 0.80),
    "pink": (0.95, 0.50, 0.68),
}
IRISES: dict[str, RGB] = {"brown": (0.36, 0.20, 0.10), "green": (0.22, 0.55, 0.30), "blue": (0.20, 0.48, 0.85), "grey": (0.50, 0.56, 0.62)}
BACKGROUNDS: dict[str, RGB] = {
    "red": (0.88, 0.42, 0.38),
    "orange": (0.96, 0.64, 0.32),
    "yellow": (0.96, 0.83, 0.40),
    "green": (0.50, 0.75, 0.45),
    "turquoise": (0.36, 0.74, 0.72),
    "blue": (0.38, 0.60, 0.90),
    "purple": (0.63, 0.50, 0.85),
    "pink": (0.95, 0.62, 0.74),
}
SHIRTS: dict[str, RGB] = {
    "red": (0.78, 0.22, 0.22),
    "yellow": (0.94, 0.74, 0.24),
    "green": (0.20, 0.52, 0.36),
    "blue": (0.20, 0.36, 0.68),
    "purple": (0.45, 0.27, 0.58),
    "white": (0.93, 0.93, 0.92),
}
PALETTES = dict(zip(PAINTED, (SKINS, HAIRS, IRISES, SHIRTS, BACKGROUNDS), strict=True))
CLOSED = ("shirt", "background")  # palettes that run in a circle
COMMON = (
    "black",
    "black",
    "brown",
    "brown",
    "brown",
    "red",
    "red",
    "blond",
    "blond",
    "white",
    "blue",
    "pink",
)  # how often latents give them
MOODS: dict[Mood, tuple[float, float]] = {"happy": (1, 0), "surprised": (0, 1), "angry": (-1, 0), "sad": (0, -1), "neutral": (0, 0)}


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face. Ranges: ``turn``, ``tilt``, ``parting``, ``valence``, ``arousal`` [-1, 1]; all other numbers [0, 1]; colours RGB in [0, 1].

    The mood is a point in the plane of valence and arousal: happy (1, 0), surprised (0, 1), angry (-1, 0), sad (0, -1), neutral (0, 0);
    it shows as far as ``intensity`` lets it.
    """

    turn: float = 0.0
    tilt: float = 0.0
    width: float = 0.5
    chin: float = 0.5
    length: float = 0.3
    volume: float = 0.5
    fringe: float = 0.3
    parting: float = 0.3
    curl: float = 0.0
    bun: float = 0.0
    eyes: float = 0.5
    glasses: float = 0.0
    square: float = 0.0
    valence: float = 0.0
    arousal: float = 0.0
    intensity: float = 1.0
    skin: RGB = SKINS["light"]
    hair: RGB = HAIRS["brown"]
    iris: RGB = IRISES["brown"]
    shirt: RGB = SHIRTS["blue"]
    background: RGB = BACKGROUNDS["turquoise"]

    def row(self) -> NDArray[np.float32]:
        """The features (len(FEATURES),) that ``portrait.draw`` takes."""
        numbers: list[float] = [getattr(self, name) for name in SHAPE + MOOD]
        for name in PAINTED:
            numbers.extend(getattr(self, name))
        return np.array(numbers, np.float32)

    @staticmethod
    def of(row: NDArray[np.floating] | Sequence[float]) -> Face:
        """The face of a row of features."""
        values = [float(x) for x in row]
        if len(values) != len(FEATURES):
            raise ValueError(f"a face has {len(FEATURES)} features, not {len(values)}")
        named: dict[str, float | RGB] = {name: values[INDEX[name]] for name in SHAPE + MOOD}
        for name in PAINTED:
            start = INDEX[f"{name}_r"]
            named[name] = (values[start], values[start + 1], values[start + 2])
        return Face(**{field.name: named[field.name] for field in fields(Face)})  # type: ignore[arg-type]

    def draw(self, side: int = 64) -> NDArray[np.uint8]:
        """The picture, (side, side, 3)."""
        return np.asarray(pictures(np.stack([self.row()]), side)[0])

    @property
    def mood(self) -> Mood:
        """The mood that shows most; neutral when none shows by a third."""
        x, y = self.valence, self.arousal
        scale = min(max(self.intensity, 0.0), 1.0) / max(sqrt(x * x + y * y), 1.0)
        shown: dict[Mood, float] = {"happy": x, "surprised": y, "angry": -x, "sad": -y}
        best = max(shown, key=lambda name: shown[name])
        return best if shown[best] * scale > 1 / 3 else "neutral"


def pictures(rows: NDArray[np.float32], side: int = 64) -> NDArray[np.uint8]:
    """Rows of features (N, len(FEATURES)) ↦ pictures (N, side, side, 3)."""
    images = draw(torch.from_numpy(np.ascontiguousarray(rows, np.float32)), side)
    return np.asarray((images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


# From latents to features. Coordinate k of a normalised latent rules one trait alone, so that a user who turns one knob sees one change.

KNOBS = (
    *("turn", "tilt", "width", "chin", "length", "volume", "fringe", "parting", "curl", "bun", "eyes", "glasses", "square"),
    *("valence", "arousal", "intensity", "skin", "hair", "iris", "shirt", "shirt_2", "background", "background_2"),
)
KNOB = {name: i for i, name in enumerate(KNOBS)}


def features(z: Tensor) -> Tensor:
    """Latents (N, size), size ≥ len(KNOBS), ↦ features (N, len(FEATURES)); smooth nearly everywhere."""
    z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
    u = torch.special.ndtr(z[:, : len(KNOBS)])
    columns = [shape(u[:, KNOB[name]], name) for name in SHAPE]
    columns.extend(mood(z[:, KNOB["valence"]], z[:, KNOB["arousal"]], u[:, KNOB["intensity"]]))
    for name in PAINTED:
        closed = name in CLOSED
        t = torch.atan2(z[:, KNOB[name]], z[:, KNOB[f"{name}_2"]]) / (2 * torch.pi) + 0.5 if closed else u[:, KNOB[name]]
        stops = [HAIRS[common] for common in COMMON] if name == "hair" else list(PALETTES[name].values())
        columns.extend(along(t, stops, closed).unbind(1))
    return torch.stack(columns, dim=1)


def shape(u: Tensor, name: str) -> Tensor:
    """A uniform number to a shape feature: some traits are rather there or not than in between."""
    if name in ("turn", "tilt", "parting"):
        return 2 * u - 1
    chance = {"glasses": 0.33, "bun": 0.2, "curl": 0.4, "fringe": 0.5, "length": 0.5, "square": 0.5}.get(name)
    steep = {"glasses": 22.0, "bun": 18.0, "curl": 9.0, "fringe": 9.0, "length": 6.0, "square": 16.0}.get(name, 1.0)
    return u if chance is None else torch.sigmoid(steep * (u - 1 + chance))


def mood(x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two normal numbers to the disc of moods, a little shifted to the happy side, and a uniform one to the intensity."""
    x, y = 0.85 * x + 0.3, 0.85 * y
    scale = (1 + (x.square() + y.square()).square()) ** -0.25
    return x * scale, y * scale, 0.4 + 0.6 * u


def along(t: Tensor, colours: Sequence[RGB], closed: bool) -> Tensor:
    """(N,) in [0, 1] to colours (N, 3): piecewise along the palette, resting at each colour."""
    stops = torch.tensor([*colours, colours[0]] if closed else colours, dtype=t.dtype)
    place = t.clamp(0, 1) * len(stops) - 0.5 if not closed else t * len(colours)
    place = place.clamp(0, len(stops) - 1 - 1e-4)
    i = place.floor().long()
    step = ((place - i - 0.5) * 1.8 + 0.5).clamp(0, 1)[:, None]
    step = step * step * (3 - 2 * step)
    return stops[i] + (stops[i + 1] - stops[i]) * step


def sample(count: int, seed: int) -> list[Face]:
    """Random faces with sharper traits than the latents give and all moods alike; for data sets with captions."""
    rng = np.random.default_rng(seed)
    return [draw_lots(rng) for _ in range(count)]


def draw_lots(rng: np.random.Generator) -> Face:
    numbers = {name: float(rng.uniform()) for name in SHAPE}
    numbers |= {name: float(rng.uniform(-1, 1)) for name in ("turn", "tilt", "parting")}
    numbers |= {name: float(rng.random() < chance) for name, chance in (("glasses", 0.4), ("square", 0.5), ("bun", 0.2))}
    names: list[Mood] = list(MOODS)
    numbers["valence"], numbers["arousal"] = MOODS[names[rng.integers(len(names))]]
    colours = {name: choose(rng, list(palette.values())) for name, palette in PALETTES.items()}
    return Face(**numbers, intensity=float(rng.uniform(0.75, 1)), **colours)  # type: ignore[arg-type]


def choose(rng: np.random.Generator, colours: Sequence[RGB]) -> RGB:
    """One of the colours, a little varied."""
    r, g, b = np.clip(np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0, 0.015, 3), 0, 1).tolist()
    return r, g, b


ADJECTIVES: dict[Mood, str] = {"happy": "smiling", "surprised": "surprised", "angry": "angry", "sad": "sad", "neutral": "calm"}


def caption(face: Face) -> str:
    """What a person would say: "a smiling face with long red hair and round glasses, blue background"."""
    traits = [f"{hair_style(face)} {nearest(face.hair, HAIRS)} hair".strip()]
    if face.bun > 0.5:
        traits.append("a bun")
    if face.glasses > 0.5:
        traits.append(f"{'square' if face.square > 0.5 else 'round'} glasses")
    told = f"{', '.join(traits[:-1])} and {traits[-1]}" if len(traits) > 1 else traits[0]
    mood_word = ADJECTIVES[face.mood]
    return f"{'an' if mood_word[0] in 'aeiou' else 'a'} {mood_word} face with {told}, {nearest(face.background, BACKGROUNDS)} background"


def hair_style(face: Face) -> str:
    words = ["long" if face.length > 0.6 else "short" if face.length < 0.4 else ""]
    words.append("curly" if face.curl > 0.6 else "")
    return " ".join(word for word in words if word)


def nearest(colour: RGB, palette: dict[str, RGB]) -> str:
    """The name of the palette's colour nearest to ``colour``."""
    return min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(palette[name], colour, strict=True)))
