"""What the recipes share: training a Precure synthesis network by regression on a drawing program, and a mapping network on known styles.

The recipes know which picture belongs to which styles, so no adversary is needed: the network that is trained draws what the program draws,
and styles mean what the recipe says they mean. Low resolutions are trained first (Karras et al. 2018), as most is learned there at a
fraction of the cost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt
from pathlib import Path

import root  # noqa: F401
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from api.models.nets.precure import SLOPE, Layer, Level, ModulatedConv, Synthesis, Upsampling

# count, side ↦ styles (count, levels, size), pictures (count, 3, side, side) in [0, 1]
Batch = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Phase:
    """``steps`` batches at the resolution of ``levels``, learning rate falling from ``rate`` to ``end`` along a cosine."""

    levels: int
    batch: int
    steps: int
    rate: float = 4e-3
    end: float = 1e-3


class Average:
    """Exponential moving average of parameters; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        names = list(self.values)
        found = dict(module.named_parameters())
        torch._foreach_lerp_([self.values[name] for name in names], [found[name].detach() for name in names], weight)


def prepare(synthesis: Synthesis) -> None:
    """Start values that suit regression: weights small enough that Adam's steps move them, pictures near grey."""
    with torch.no_grad():
        for module in synthesis.modules():
            if isinstance(module, ModulatedConv):
                fan_in = module.weight[0].numel()
                module.weight.mul_((1.0 if module.demodulate else 0.05) / sqrt(fan_in))
        synthesis.levels[0].rgb.bias.fill_(0.5)  # type: ignore[union-attr, operator]


def groups(synthesis: Synthesis) -> list[dict[str, object]]:
    """Adam's parameter groups: style weights are scaled at run time and take larger steps; noise strengths stay as they are."""
    affine = [p for name, p in synthesis.named_parameters() if name.endswith("affine.weight")]
    rest = [p for name, p in synthesis.named_parameters() if not name.endswith(("affine.weight", "strength"))]
    return [{"params": rest, "factor": 1.0}, {"params": affine, "factor": 10.0}]


# The forward pass of api.models.nets.precure in a form that compiles well and computes in bfloat16; same weights, same function.


def render(synthesis: Synthesis, ws: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    x = synthesis.const.to(dtype).expand(ws.shape[0], -1, -1, -1)
    rgb: Tensor | None = None
    for i in range(levels):
        level = synthesis.levels[i]
        assert isinstance(level, Level)
        x, rgb = run_level(level, x, rgb, ws[:, i])
    assert rgb is not None
    return rgb


def run_level(level: Level, x: Tensor, rgb: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
    if level.up is not None:
        x = upsample(level.up, x)
    for layer in level.layers:
        assert isinstance(layer, Layer)
        x = F.leaky_relu(convolve(layer.conv, x, w), SLOPE)
    y = convolve(level.rgb, x, w).float()
    return x, y if rgb is None or level.up_rgb is None else y + upsample(level.up_rgb, rgb)


def upsample(up: Upsampling, x: Tensor) -> Tensor:
    assert up.matrix is not None
    matrix = up.matrix.to(x.dtype)
    return matrix @ (x @ matrix.T)


def convolve(conv: ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
    s = conv.affine(w)
    x = x * s[:, :, None, None].to(x.dtype)
    if conv.weight.shape[-1] == 3:
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], 3)
    x = F.conv2d(x, conv.weight.to(x.dtype))
    if conv.demodulate:
        d = torch.rsqrt(s.square() @ conv.weight.square().sum((2, 3)).T + 1e-8)
        x = x * d[:, :, None, None].to(x.dtype)
    return x + conv.bias[:, None, None].to(x.dtype)


def difference(found: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of pixels, of their slopes (which keeps edges crisp) and of coarser views; ``weight`` (side, side)."""
    error = found - wanted
    area = error.abs() if weight is None else error.abs() * weight
    loss = area.mean()
    loss = loss + 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    while error.shape[-1] > 8:
        error = F.avg_pool2d(error, 2)
        loss = loss + 0.5 * error.abs().mean()
    return loss


@dataclass
class Trainer:
    """Trains ``synthesis`` through ``phases``; ``snapshot`` is where it can go on after a break."""

    synthesis: Synthesis
    batch: Batch
    phases: Sequence[Phase]
    snapshot: Path
    seed: int = 0
    compiled: bool = False
    dtype: torch.dtype = torch.bfloat16
    weight: Callable[[int], Tensor] | None = None  # side ↦ importance of pixels (side, side)
    save_every: int = 500

    def __post_init__(self) -> None:
        self.done = 0
        self.average = Average(self.synthesis)
        self.optimiser = torch.optim.Adam(groups(self.synthesis), lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def total(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def run(self) -> Iterator[float]:
        """Goes through what is left of the phases and yields the loss of each step."""
        start = 0
        for phase in self.phases:
            if self.done < start + phase.steps:
                yield from self.run_phase(phase, self.done - start)
            start += phase.steps
        self.save()

    def run_phase(self, phase: Phase, begin: int) -> Iterator[float]:
        objective = self.objective(phase)
        for step in range(begin, phase.steps):
            rate = phase.end + (phase.rate - phase.end) * (1 + cos(pi * step / phase.steps)) / 2
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            ws, pictures = self.batch(phase.batch, min(4 << phase.levels, self.synthesis.noise_sides[-1]), self.generator)
            self.optimiser.zero_grad(set_to_none=True)
            loss = objective(ws, pictures)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.average.update(self.synthesis)
            self.done += 1
            if self.done % self.save_every == 0 or step == phase.steps - 1:
                self.save()
            yield loss.item()

    def objective(self, phase: Phase) -> Callable[[Tensor, Tensor], Tensor]:
        side = 2 << phase.levels
        weight = self.weight(side) if self.weight is not None else None

        def loss(ws: Tensor, pictures: Tensor) -> Tensor:
            wanted = F.avg_pool2d(pictures, pictures.shape[-1] // side)
            return difference(render(self.synthesis, ws, phase.levels, self.dtype), wanted, weight)

        return torch.compile(loss, dynamic=False) if self.compiled else loss

    def save(self) -> None:
        draft = self.snapshot.with_suffix(".part")
        state = {
            "done": self.done,
            "synthesis": self.synthesis.state_dict(),
            "average": self.average.values,
            "count": self.average.count,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }
        torch.save(state, draft)
        draft.replace(self.snapshot)

    def resume(self) -> None:
        state = torch.load(self.snapshot, weights_only=True)
        self.done, self.average.count = state["done"], state["count"]
        self.synthesis.load_state_dict(state["synthesis"])
        self.average.values = state["average"]
        factors = [group["factor"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, factor in zip(self.optimiser.param_groups, factors, strict=True):
            group["factor"] = factor
        self.generator.set_state(state["generator"])


def show(title: str, losses: Iterator[float], begin: int, total: int, every: int = 100) -> None:
    """Runs the training with a progress bar: on a terminal in place, else a line now and then."""
    smooth, started = 0.0, time.monotonic()
    for count, loss in enumerate(losses, start=1):
        smooth = loss if count == 1 else smooth + (loss - smooth) / min(count, 50)
        if count % every == 0 or begin + count == total:
            bar = "#" * (30 * (begin + count) // total)
            rate = count / (time.monotonic() - started)
            left = (total - begin - count) / rate / 60
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{title} [{bar:30}] {begin + count}/{total} loss {smooth:.5f} {rate:.1f}/s {left:.1f} min left ", end=end, flush=True)
    if sys.stdout.isatty():
        print()
