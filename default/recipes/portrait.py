"""Cartoon faces as a function of attributes: what a face is (``Face``), how it is drawn (``draw``), and how it is told (``caption``).

A face is a row of ``FEATURES``: plain numbers, nearly all in [0, 1] or [-1, 1], colours as RGB. Everything is continuous (glasses fade in,
hair grows, one colour turns into another), so that the mean of two rows is a face between the two and a network can learn the drawing
by regression. ``people.Face`` is one row under readable names.

The picture is a stack of antialiased shapes given by their signed distances (negative inside), painted from back to front. Coordinates
run from -1 to 1, x to the right and y down.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHAPE = ("turn", "tilt", "width", "chin", "length", "volume", "fringe", "parting", "curl", "bun", "eyes", "glasses", "square")
MOOD = ("valence", "arousal", "intensity")
PAINTED = ("skin", "hair", "iris", "shirt", "background")
FEATURES = SHAPE + MOOD + tuple(f"{name}_{c}" for name in PAINTED for c in "rgb")
INDEX = {name: i for i, name in enumerate(FEATURES)}

Distance = Tensor  # (N, side, side)


def draw(features: Tensor, side: int = 64) -> Tensor:
    """``features`` (N, len(FEATURES)) ↦ pictures (N, 3, side, side) in [0, 1]. Shape features outside their ranges are clipped."""
    return Painter(features, side).paint()


class Painter:
    """Draws one batch. All shapes are (N, side, side); all attributes (N, 1, 1); colours (N, 3, 1, 1)."""

    def __init__(self, features: Tensor, side: int) -> None:
        self.side = side
        self.value = {name: features[:, i, None, None] for name, i in INDEX.items()}
        for name in SHAPE:
            self.value[name] = self.value[name].clamp(-1.0 if name in ("turn", "tilt", "parting") else 0.0, 1.0)
        self.colour = {name: features[:, INDEX[f"{name}_r"] : INDEX[f"{name}_r"] + 3, None, None].clamp(0, 1) for name in PAINTED}
        self.feel()
        line = (torch.arange(side, dtype=features.dtype, device=features.device) + 0.5) * (2 / side) - 1
        self.x, self.y = line[None, None, :], line[None, :, None]
        angle = self.value["tilt"] * 0.13
        x, y = self.x, self.y - 0.35  # the head turns about the neck
        self.hx = x * angle.cos() + y * angle.sin()
        self.hy = y * angle.cos() - x * angle.sin() + 0.25
        self.shift = self.value["turn"] * 0.085
        self.picture = torch.zeros(features.shape[0], 3, side, side, dtype=features.dtype, device=features.device)

    def feel(self) -> None:
        """From the mood's plane to how strongly each of four moods shows; together at most a unit vector times the intensity."""
        x, y = self.value["valence"], self.value["arousal"]
        scale = self.value["intensity"].clamp(0, 1) / (x.square() + y.square()).clamp(min=1).sqrt()
        self.happy, self.angry = (x * scale).clamp(min=0), (-x * scale).clamp(min=0)
        self.surprised, self.sad = (y * scale).clamp(min=0), (-y * scale).clamp(min=0)

    def cover(self, d: Distance, soft: float = 1.0) -> Tensor:
        """How much of each pixel lies inside; ``soft`` widens the border, in pixels."""
        return (0.5 - d * (self.side / 2 / soft)).clamp(0, 1)

    def put(self, colour: Tensor, alpha: Tensor) -> None:
        self.picture = self.picture + (colour - self.picture) * alpha[:, None]

    def paint(self) -> Tensor:
        self.paint_background()
        self.paint_back_hair()
        self.paint_body()
        self.paint_head()
        for side in (-1.0, 1.0):
            self.paint_eye(side)
        self.paint_mouth()
        self.paint_front_hair()
        for side in (-1.0, 1.0):
            self.paint_brow(side)
        self.paint_glasses()
        return self.picture

    def paint_background(self) -> None:
        colour = self.colour["background"]
        self.put(colour, torch.ones_like(self.x + self.y))
        disc = ellipse(self.x, self.y - 0.05, 0.88, 0.88)
        self.put(lighten(colour, 0.28), self.cover(disc))

    def skull(self, grow: Tensor, short: Tensor, x: Tensor, y: Tensor) -> Distance:
        """The outline of hair around the head, ``grow`` beyond it, its lower end higher by ``short``, wavy by ``curl``."""
        angle = torch.atan2(x, -y)
        wave = self.value["curl"] * 0.045 * (angle * 13).sin()
        return ellipse(x, y + short, 0.47 + 0.05 * self.value["width"] + grow - short * 0.2, 0.53 + grow - short) + wave

    def hair_body(self) -> Distance:
        """All hair but the bun: a cap around the head and, when long, what falls beside the neck."""
        grow = 0.075 + 0.085 * self.value["volume"]
        raise_ = 0.13 * (1 - smooth(self.value["length"] / 0.5))  # short hair ends at the ears
        cap = self.skull(grow, raise_, self.hx, self.hy + 0.10)
        bottom = -0.1 + 0.87 * self.value["length"]
        wave = self.value["curl"] * 0.045 * (self.hy * 22).sin()
        half = 0.43 + 0.05 * self.value["width"] + grow + 0.05 * self.value["length"] * self.value["volume"]
        fall = box(self.hx, self.hy - (bottom - 0.1) / 2, half, (bottom + 0.1) / 2, 0.16) + wave
        return torch.minimum(cap, fall)

    def paint_back_hair(self) -> None:
        hair = self.colour["hair"]
        bun = self.value["bun"]
        knot = ellipse(self.hx - self.value["parting"] * 0.08, self.hy + 0.58 + 0.24 * bun, 0.02 + 0.2 * bun, 0.02 + 0.18 * bun)
        self.put(darken(hair, 0.12), self.cover(knot + self.value["curl"] * 0.02 * (self.hx * 40).sin()))
        self.put(darken(hair, 0.25), self.cover(self.hair_body()))

    def paint_body(self) -> None:
        skin, shirt = self.colour["skin"], self.colour["shirt"]
        self.put(shirt, self.cover(ellipse(self.x, self.y - 1.2, 0.74, 0.5)))
        lean = self.value["tilt"] * 0.04
        neck = torch.minimum(box(self.x + lean, self.y - 0.55, 0.155, 0.28, 0.08), ellipse(self.x, self.y - 0.78, 0.21, 0.13))
        self.put(darken(self.redden(skin) * 0.4 + skin * 0.6, 0.1), self.cover(neck))

    def head(self, x: Tensor, y: Tensor) -> Distance:
        narrow = 1 - (0.08 + 0.26 * self.value["chin"]) * y.clamp(min=0).square() / 0.25
        return ellipse(x / narrow, y, 0.43 + 0.055 * self.value["width"], 0.5)

    def paint_head(self) -> None:
        skin = self.colour["skin"]
        reach = 0.42 + 0.055 * self.value["width"]
        for side in (-1.0, 1.0):
            x = self.hx * side - reach + self.value["turn"] * side * 0.03
            self.put(darken(skin, 0.08), self.cover(ellipse(x, self.hy - 0.06, 0.075, 0.105)))
        inside = self.cover(self.head(self.hx, self.hy - 0.05))
        self.put(skin, inside)
        for side in (-1.0, 1.0):
            blush = self.cover(ellipse(self.hx - side * 0.25 - self.shift, self.hy - 0.19, 0.07, 0.045), 5)
            self.put(self.redden(skin), blush * inside * (0.35 + 0.35 * self.happy + 0.25 * self.angry))
        nose = ellipse(self.hx - self.shift * 1.5, self.hy - 0.14, 0.045, 0.035)
        self.put(darken(self.redden(skin), 0.1), self.cover(nose, 1.5) * 0.75)

    def redden(self, colour: Tensor) -> Tensor:
        return colour * torch.tensor([1.0, 0.68, 0.66], dtype=colour.dtype, device=colour.device)[:, None, None]

    def eye_frame(self, side: float) -> tuple[Tensor, Tensor]:
        return self.hx - side * 0.19 - self.shift, self.hy - 0.02

    def paint_eye(self, side: float) -> None:
        x, y = self.eye_frame(side)
        size = 0.85 + 0.3 * self.value["eyes"]
        opening = 1 - 0.25 * self.happy - 0.3 * self.angry - 0.18 * self.sad + 0.28 * self.surprised
        # Lids cut the eye: the upper one slants inwards in anger and outwards in sorrow, the lower one rises in a smile.
        upper = y + 0.105 * size * opening + side * x * (0.45 * self.angry - 0.45 * self.sad) - 0.035 * (self.angry + self.sad)
        lower = y - 0.105 * size * opening + (0.05 * self.happy) * (1 - (x / 0.1).square()).clamp(min=0)
        ball = ellipse(x, y, 0.1 * size, 0.115 * size * (1 + 0.12 * self.surprised))
        eye = torch.maximum(torch.maximum(ball, lower), -upper)
        inside = self.cover(eye)
        self.put(torch.full_like(self.picture, 0.98), inside)
        gaze = self.value["turn"] * 0.018
        self.put(self.colour["iris"], inside * self.cover(ellipse(x - gaze, y, 0.066 * size, 0.066 * size)))
        dark = torch.full_like(self.picture, 0.07)
        self.put(dark, inside * self.cover(ellipse(x - gaze, y, 0.036 * size, 0.036 * size)))
        self.put(torch.ones_like(self.picture), inside * self.cover(ellipse(x - gaze - 0.025, y + 0.03, 0.02, 0.02)))
        lash = torch.maximum(eye.abs() - 0.014, (y + 0.02 - 0.02 * self.happy).clamp(min=-0.05))
        self.put(darken(self.colour["hair"], 0.75), self.cover(lash))

    def paint_brow(self, side: float) -> None:
        x, y = self.eye_frame(side)
        lift = 0.215 + 0.085 * self.surprised + 0.02 * self.happy - 0.045 * self.angry + 0.03 * self.sad
        slant = 0.55 * self.angry - 0.55 * self.sad + 0.1 * self.happy
        bend = 1.6 * (x / 0.12).square() * 0.02 * (1 - self.angry)
        y = y + lift + side * x * slant * 1.0 - bend
        brow = box(x, y, 0.1, 0.022, 0.02)
        self.put(darken(self.colour["hair"], 0.45), self.cover(brow))

    def paint_mouth(self) -> None:
        x, y = self.hx - self.shift * 1.15, self.hy - 0.31
        half = 0.15 + 0.055 * self.happy - 0.055 * self.surprised + 0.01 * self.angry
        t = (x / half).square()
        curve = 0.03 + 0.12 * self.happy - 0.13 * self.sad - 0.09 * self.angry - 0.03 * self.surprised
        middle = curve * (0.5 - t.clamp(max=1.0))
        round_ = (1 - t).clamp(min=0).sqrt()
        below = (0.12 * self.happy.square() + 0.13 * self.surprised + 0.035 * self.angry) * round_
        above = (0.0 * self.happy + 0.1 * self.surprised + 0.03 * self.angry) * round_
        beyond = (x.abs() - half).clamp(min=0)
        steep = (1 + (2 * curve * x.clamp(-0.25, 0.25) / half.square()).square()).sqrt()
        vertical = torch.maximum(y - middle - below, middle - above - y) / steep
        gap = torch.where(beyond > 0, (beyond.square() + vertical.clamp(min=0).square()).sqrt(), vertical)
        inside = self.cover(gap) * ((above + below) * 40).clamp(0, 1)
        tint = torch.tensor([0.45, 0.1, 0.13], dtype=x.dtype, device=x.device)[None, :, None, None]
        self.put(tint, inside)
        tongue = torch.tensor([0.88, 0.4, 0.42], dtype=x.dtype, device=x.device)[None, :, None, None]
        self.put(tongue, inside * self.cover(ellipse(x, y - middle - below - 0.01, 0.08, 0.05)))
        teeth = self.cover(y - middle + above - 0.045) * (self.happy * 2 + self.angry * 2 - self.surprised * 2).clamp(0, 1)
        self.put(torch.full_like(self.picture, 0.97), inside * teeth)
        lips = darken(self.redden(self.colour["skin"]), 0.42)
        self.put(lips, self.cover(gap.abs() - 0.016))

    def paint_front_hair(self) -> None:
        hair = self.colour["hair"]
        x, y, part = self.hx, self.hy, self.value["parting"] * 0.2
        away = (x - part).abs()
        curtain = -0.42 + 0.85 * away.square() / (0.12 + away) + 0.10 * away
        bangs = -0.17 - 0.12 * x.square() + 0.02 * (x * 21).cos()
        fringe = self.value["fringe"]
        line = curtain + (bangs - curtain) * fringe + self.value["curl"] * 0.025 * (x * 25).sin()
        long = smooth((self.value["length"] - 0.3) / 0.35)
        edge = 0.40 + 0.055 * self.value["width"] + 0.25 * (1 - long)
        locks = torch.maximum(edge - x.abs(), -(y + 0.3))
        front = torch.maximum(torch.minimum(y - line, locks), self.hair_body())
        inside_head = self.cover(self.head(x, y - 0.05))
        shade = self.cover(front - 0.035, 2.5) * inside_head
        self.put(darken(self.colour["skin"], 0.22), shade * 0.7)
        self.put(hair, self.cover(front))
        gleam = ellipse(x + 0.05 - part * 0.3, y + 0.06, 0.42, 0.47).abs() - 0.03
        gleam = torch.maximum(gleam, torch.maximum(y + 0.3, (x + 0.12).abs() - 0.26))
        self.put(lighten(hair, 0.35), self.cover(torch.maximum(gleam, front + 0.03), 2.0) * 0.6)

    def paint_glasses(self) -> None:
        alpha = smooth((self.value["glasses"] - 0.3) / 0.4)
        frame = torch.full_like(self.picture, 0.14)
        power = 2 + 4 * self.value["square"]
        wide, high = 0.155 + 0.01 * self.value["square"], 0.155 - 0.025 * self.value["square"]
        rims = []
        for side in (-1.0, 1.0):
            x, y = self.eye_frame(side)
            ratio = ((x / wide).abs().clamp(min=1e-4) ** power + (y / high).abs().clamp(min=1e-4) ** power) ** (1 / power)
            lens = (ratio - 1) * high
            self.put(torch.ones_like(self.picture), self.cover(lens) * alpha * 0.14)
            rims.append(lens.abs() - 0.018)
            rims.append(box(self.hx * side - 0.4, y + 0.02, 0.055, 0.012, 0.01))
        x, y = self.hx - self.shift, self.hy - 0.0
        rims.append(box(x, y + 0.01, 0.045, 0.012, 0.01))
        rim = rims[0]
        for other in rims[1:]:
            rim = torch.minimum(rim, other)
        self.put(frame, self.cover(rim) * alpha)


def ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Distance:
    """The usual first-order distance to an ellipse: f · (f - 1) / |∇f|-like, exact on the axes (Quilez, "ellipse distance")."""
    p, q = x / a, y / b
    r = (p.square() + q.square() + 1e-8).sqrt()
    slope = ((p / a).square() + (q / b).square() + 1e-8).sqrt()
    return r * (r - 1) / slope


def box(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, corner: float) -> Distance:
    """A rectangle of half sides a, b with round corners."""
    p, q = x.abs() - a + corner, y.abs() - b + corner
    outside = (p.clamp(min=0).square() + q.clamp(min=0).square() + 1e-8).sqrt()
    return outside + torch.maximum(p, q).clamp(max=0) - corner


def smooth(t: Tensor) -> Tensor:
    """0 below 0, 1 above 1, 3t² - 2t³ between."""
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


def darken(colour: Tensor, amount: float) -> Tensor:
    return colour * (1 - amount)


def lighten(colour: Tensor, amount: float) -> Tensor:
    return colour + (1 - colour) * amount
