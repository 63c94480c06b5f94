"""Characters as a function of numbers: outlines of free fonts as signed distances, so that weights and typefaces blend, and their drawing.

Each character of each font is rasterised once, large, and turned into a field of signed distances (positive inside). A mean of two such
fields is a shape between the two; a field's zero line, sampled through an affine map, is the antialiased glyph.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import tau

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
FONTS = {  # typeface: its light and its bold end; files of Debian's fonts-lato, -liberation2, -roboto-slab, -dejavu-core, -quicksand
    "sans": ("Lato-Light.ttf", "Lato-Black.ttf"),
    "serif": ("LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf"),
    "slab": ("RobotoSlab-Light.otf", "RobotoSlab-Bold.otf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "round": ("Quicksand-Regular.ttf", "Quicksand-Bold.ttf"),
}
POSE = ("weight", "slant", "turn", "across", "down", "size", "stretch")
FEATURES = (*FONTS, *POSE, *(f"{name}_{c}" for name in ("ink", "ground") for c in "rgb"))
INDEX = {name: i for i, name in enumerate(FEATURES)}
KNOBS = (*POSE, "font", "font_2", "ink", "ink_2", "ground", "ground_2")

INKS = ((0.98, 0.97, 0.94), (1.00, 0.86, 0.42), (1.00, 0.66, 0.45), (1.00, 0.72, 0.76), (0.72, 0.86, 1.00), (0.68, 0.95, 0.80))
GROUNDS = ((0.12, 0.16, 0.32), (0.10, 0.28, 0.36), (0.12, 0.32, 0.24), (0.36, 0.20, 0.12), (0.42, 0.12, 0.20), (0.28, 0.14, 0.38))

FINE, FIELD = 192, 64  # sides of the raster and of the stored field
REACH = 1.4  # the field spans -REACH … REACH where a picture spans -1 … 1
CAPITAL, BASELINE = 1.2, 0.52  # height of an H and y of the baseline, in picture units


def fields(characters: str = CHARACTERS) -> Tensor:
    """(characters, 2 · fonts, FIELD, FIELD): distances in picture units; light and bold ends of each typeface side by side."""
    files = [file for pair in FONTS.values() for file in pair]
    return torch.stack([torch.stack([distances(raster(c, file)) for file in files]) for c in characters])


def raster(character: str, file: str) -> Tensor:
    """(FINE, FINE) bool: the character, as tall as ``CAPITAL`` says, centred across."""
    scale = FINE / (2 * REACH)
    font = ImageFont.truetype(file, 400)
    _, top, _, _ = font.getbbox("H", anchor="ls")
    font = ImageFont.truetype(file, 400 * CAPITAL * scale / -top)
    left, _, right, _ = font.getbbox(character, anchor="ls")
    image = Image.new("L", (FINE, FINE))
    ImageDraw.Draw(image).text((FINE / 2 - (left + right) / 2, FINE / 2 + BASELINE * scale), character, font=font, fill=255, anchor="ls")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(FINE, FINE) > 127


def distances(inside: Tensor) -> Tensor:
    """Signed Euclidean distances (FIELD, FIELD) of a raster, positive inside, in picture units."""
    signed = (nearest(~inside) - nearest(inside)).clamp(-60, 60)
    step = FINE // FIELD
    return F.avg_pool2d(signed[None], step)[0] * (2 * REACH / FINE)


def nearest(mask: Tensor) -> Tensor:
    """Distance of each pixel to the nearest one in ``mask``: along rows, then over columns (as Felzenszwalb and Huttenlocher 2012)."""
    side = mask.shape[0]
    place = torch.arange(side, dtype=torch.float32)
    before = torch.where(mask, place, -1e4).cummax(1).values
    after = torch.where(mask, place, 1e4).flip(1).cummin(1).values.flip(1)
    row = torch.minimum(place - before, after - place)
    across = (place[:, None] - place[None]).square()
    return (row.square()[None] + across[:, :, None]).amin(1).sqrt()


def draw(fields: Tensor, rows: Tensor, side: int = 32) -> Tensor:
    """Fields (N, 2 · fonts, FIELD, FIELD), one character each, and features (N, len(FEATURES)) ↦ pictures (N, 3, side, side) in [0, 1]."""
    value = {name: rows[:, i] for name, i in INDEX.items()}
    weight = (value["weight"].clamp(-0.3, 1.3))[:, None]
    fonts = rows[:, : len(FONTS)]
    mixture = torch.stack([fonts * (1 - weight), fonts * weight], dim=2).flatten(1)
    field = torch.einsum("nf,nfhw->nhw", mixture, fields)
    size = 1 + 0.12 * value["size"]
    ground = rows[:, INDEX["ground_r"] :, None, None].clamp(0, 1)
    shade = torch.linspace(0.10, 0.0, side, device=rows.device)[:, None]
    picture = ground + (1 - ground) * shade
    picture = picture * (1 - 0.45 * cover(field, value, size, side, 0.09))
    ink = rows[:, INDEX["ink_r"] : INDEX["ground_r"], None, None].clamp(0, 1)
    return picture + (ink - picture) * cover(field, value, size, side, 0.0)


def cover(field: Tensor, value: dict[str, Tensor], size: Tensor, side: int, offset: float) -> Tensor:
    """(N, 1, side, side): how much of each pixel is glyph; ``offset`` moves it right and down."""
    cos, sin = (0.16 * value["turn"]).cos(), (0.16 * value["turn"]).sin()
    lean, wide = 0.32 * value["slant"], 1 + 0.13 * value["stretch"]
    x0, y0 = 0.10 * value["across"] + offset, 0.09 * value["down"] + offset
    # From picture to glyph: undo the shift, the turn, the slant and the size, in this order.
    a, b = (cos + lean * -sin) / (size * wide), (sin + lean * cos) / (size * wide)
    c, d = -sin / size, cos / size
    theta = torch.stack([torch.stack([a, b, -(a * x0 + b * y0)], 1), torch.stack([c, d, -(c * x0 + d * y0)], 1)], 1) / REACH
    grid = F.affine_grid(theta, [len(field), 1, side, side], align_corners=False)
    distance = F.grid_sample(field[:, None], grid, align_corners=False, padding_mode="border")
    return (distance * size[:, None, None, None] * (side / 2) + 0.5).clamp(0, 1)


def features(z: Tensor) -> Tensor:
    """Latents (N, size), size ≥ len(KNOBS), ↦ features (N, len(FEATURES)); coordinate k of a normalised latent rules ``KNOBS[k]``."""
    z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
    u = torch.special.ndtr(z[:, : len(POSE)])
    ring = {name: circle(z, name) for name in ("font", "ink", "ground")}
    fonts = along(ring["font"], torch.eye(len(FONTS)))
    pose = torch.cat([u[:, :1], 2 * u[:, 1:] - 1], dim=1)
    return torch.cat([fonts, pose, along(ring["ink"], torch.tensor(INKS)), along(ring["ground"], torch.tensor(GROUNDS))], dim=1)


def circle(z: Tensor, name: str) -> Tensor:
    """Two coordinates as an angle in [0, 1)."""
    i = KNOBS.index(name)
    return torch.atan2(z[:, i], z[:, i + 1]) / tau + 0.5


def along(t: Tensor, stops: Tensor) -> Tensor:
    """(N,) in [0, 1] ↦ (N, k): around the ring of ``stops``, resting at each."""
    place = t * len(stops)
    i = place.floor().long() % len(stops)
    step = ((place - place.floor() - 0.5) * 2.2 + 0.5).clamp(0, 1)[:, None]
    step = step * step * (3 - 2 * step)
    return stops[i] + (stops[(i + 1) % len(stops)] - stops[i]) * step


@dataclass(frozen=True)
class Lettering:
    """The fields of all characters, ready to draw from."""

    fields: Tensor

    @staticmethod
    def load(characters: str = CHARACTERS) -> Lettering:
        return Lettering(fields(characters))

    def draw(self, labels: Tensor, rows: Tensor, side: int = 32) -> Tensor:
        """Class numbers (N,) and features (N, len(FEATURES)) ↦ pictures (N, 3, side, side)."""
        return draw(self.fields[labels], rows, side)
