"""The StyleGAN3 generator, translation-equivariant (T) and rotation-equivariant (R).

Karras et al., "Alias-Free Generative Adversarial Networks" (2021): section 3 for the layers, figure 4 for their order, appendix C for the
filters, F.1 for the input's transform. The geometry of the layers is planned in ``api.models.nets.alias_free``. The mapping network is
StyleGAN2's.

N is the batch, ws (N, num_ws, w_size) has a row for the input and one for each layer. Pictures are NCHW in about [-1, 1]. On the CPU
pictures are computed one after the other: the layers are large enough to keep every core busy, and a picture cannot depend on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.nets import alias_free
from api.models.nets.rows import linear
from api.models.nets.stylegan2 import EPSILON, GAIN, SLOPE, Linear, Mapping, spread


class Input(nn.Module):
    """Fourier features of a plane that each style rotates and shifts, mixed into channels (section 3.2)."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_size: int, width: int, side: int, rate: float, bandwidth: float) -> None:
        super().__init__()
        self.affine = Linear(w_size, 4)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.weight = nn.Parameter(torch.randn(width, width))
        self.side, self.rate, self.bandwidth = side, rate, bandwidth
        directions = torch.randn(width, 2)
        radii = directions.norm(dim=1, keepdim=True)
        self.register_buffer("freqs", directions / radii * (-radii.square() / 4).exp() * bandwidth)  # uniform in the disc
        self.register_buffer("phases", torch.rand(width) - 0.5)
        self.register_buffer("transform", torch.eye(3))

    def forward(self, w: Tensor, transform: Tensor | None = None) -> Tensor:
        """``transform`` (N, 3, 3) moves the plane's sampling points, on top of the checkpoint's own."""
        moved = self.transform if transform is None else self.transform @ transform
        moved = self.style(w) @ moved
        phases = self.phases + (self.freqs @ moved[:, :2, 2:])[:, :, 0]  # (N, C)
        freqs = self.freqs @ moved[:, :2, :2]  # (N, C, 2)
        fade = (1 - (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)).clamp(0, 1)
        x = self.grid().flatten(0, 1) @ freqs.mT + phases[:, None]  # (N, side², C)
        x = torch.sin(x * (2 * pi)) * fade[:, None]
        x = x @ (self.weight / sqrt(self.weight.shape[1])).T
        return x.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)

    def style(self, w: Tensor) -> Tensor:
        """The rotation and shift that the style asks for, as (N, 3, 3)."""
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        one, zero = torch.ones_like(t[:, 0]), torch.zeros_like(t[:, 0])
        rotation = torch.stack([t[:, 0], -t[:, 1], zero, t[:, 1], t[:, 0], zero, zero, zero, one], dim=1)
        shift = torch.stack([one, zero, -t[:, 2], zero, one, -t[:, 3], zero, zero, one], dim=1)
        return rotation.unflatten(1, (3, 3)) @ shift.unflatten(1, (3, 3))

    def grid(self) -> Tensor:
        """(side, side, 2): x and y of each sample's centre, in units in which the picture is the square from -0.5 to 0.5."""
        line = (torch.arange(self.side, device=self.weight.device) * 2 + 1 - self.side) / (2 * self.rate)
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([x, y], dim=2)


class Layer(nn.Module):
    """A modulated convolution and a leaky ReLU that works at a higher rate between two low-pass filters (sections 3.2 and C.2)."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, w_size: int, plan: alias_free.Layer, clamp: float | None) -> None:
        super().__init__()
        self.affine = Linear(w_size, plan.fan_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(plan.fan_out, plan.fan_in, plan.kernel, plan.kernel))
        self.bias = nn.Parameter(torch.zeros(plan.fan_out))
        self.register_buffer("magnitude_ema", torch.ones(()))
        for name, taps in (("up_filter", plan.up_filter()), ("down_filter", plan.down_filter())):
            self.register_buffer(name, None if taps is None else torch.from_numpy(taps).float())
        self.plan, self.clamp = plan, clamp
        self.frozen: tuple[Tensor, Tensor, Tensor] | None = None

    def freeze(self, dtype: torch.dtype = torch.float32) -> None:
        """Compute once what only depends on the parameters, for inputs of ``dtype``."""
        self.frozen = self.kernel(dtype)

    def kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The weight as the convolution takes it, the sum of its squares over the window, (out, in), and the gain behind."""
        weight: Tensor = self.weight
        gain = self.magnitude_ema.rsqrt() * (1.0 if self.plan.to_rgb else GAIN)  # the leaky ReLU behind is homogeneous
        if not self.plan.to_rgb:  # the demodulation takes this factor out again; it keeps half precision in range
            weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
        return weight.to(dtype, memory_format=torch.channels_last), weight.square().sum(dim=(2, 3)), gain

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Without gradients x is overwritten: fresh memory costs more than the sums."""
        x = self.convolve(x, w)
        x = upsample(x, self.up_filter, self.plan.up, *self.plan.padding)
        limit = self.clamp
        if torch.is_grad_enabled():
            x = x if self.plan.to_rgb else F.leaky_relu(x, SLOPE)
            x = x if limit is None else x.clamp(-limit, limit)
        else:
            x = x if self.plan.to_rgb else F.leaky_relu_(x, SLOPE)
            x = x if limit is None else x.clamp_(-limit, limit)
        return downsample(x, self.down_filter, self.plan.down)

    def convolve(self, x: Tensor, w: Tensor) -> Tensor:
        style: Tensor = self.affine(w)
        weight, energy, gain = self.frozen if self.frozen is not None and self.frozen[0].dtype == x.dtype else self.kernel(x.dtype)
        if self.plan.to_rgb:
            scale = style.new_full((len(style), weight.shape[0]), 1 / sqrt(weight[0].numel()))
        else:
            style = style * style.square().mean(dim=1, keepdim=True).rsqrt()
            scale = torch.rsqrt(linear(style.square(), energy) + EPSILON)
        bias = (self.bias * (1.0 if self.plan.to_rgb else GAIN)).to(x.dtype)[:, None, None]
        pad = self.plan.kernel - 1
        if torch.is_grad_enabled():
            return F.conv2d(x * spread(style, x), weight, padding=pad) * spread(scale * gain, x) + bias
        x = F.conv2d(x.mul_(spread(style, x)), weight, padding=pad)
        return torch.addcmul(bias, x, spread(scale * gain, x), out=x)


def upsample(x: Tensor, taps: Tensor | None, factor: int, low: int, high: int) -> Tensor:
    """Zeros between the samples, ``low`` and ``high`` zeros around (negative: cropped), then the symmetric filter along both axes."""
    if taps is None:
        return F.pad(x, [low, high, low, high]) if low or high else x
    taps, width = taps.to(x.dtype) * factor, x.shape[1]
    crop = len(taps) - 1 - low  # a transposed convolution gives all samples that the filter touches
    shared, extra = max(crop, 0), max(-crop, 0)
    x = F.conv_transpose2d(x, taps.reshape(1, 1, -1, 1).expand(width, 1, -1, 1), stride=(factor, 1), padding=(shared, 0), groups=width)
    x = F.conv_transpose2d(x, taps.reshape(1, 1, 1, -1).expand(width, 1, 1, -1), stride=(1, factor), padding=(0, shared), groups=width)
    ends = [extra, high + factor - len(taps) + shared]
    return x if not any(ends) else F.pad(x, [*ends, *ends])


def downsample(x: Tensor, taps: Tensor | None, factor: int) -> Tensor:
    """The symmetric filter, radial where it is a matrix, then each ``factor``-th sample."""
    if taps is None:
        return x
    taps, width = taps.to(x.dtype), x.shape[1]
    if taps.ndim == 2:
        return F.conv2d(x, taps.expand(width, 1, -1, -1), stride=factor, groups=width)
    x = F.conv2d(x, taps.reshape(1, 1, -1, 1).expand(width, 1, -1, 1), stride=(factor, 1), groups=width)
    return F.conv2d(x, taps.reshape(1, 1, 1, -1).expand(width, 1, 1, -1), stride=(1, factor), groups=width)


class Synthesis(nn.Module):
    """ws and transforms ↦ pictures (N, colours, size, size). This network has no noise."""

    def __init__(self, w_size: int, layers: Sequence[alias_free.Layer], clamp: float | None, output_scale: float) -> None:
        super().__init__()
        first = layers[0]
        rate = first.rate / first.up
        self.input = Input(w_size, first.fan_in, first.side_in, rate, first.cutoff_in)
        self.layers = nn.ModuleList(Layer(w_size, layer, clamp) for layer in layers)
        self.output_scale = output_scale
        self.num_ws = len(layers) + 1

    def forward(self, ws: Tensor, transform: Tensor | None = None, half: torch.dtype = torch.float32) -> Tensor:
        """``transform`` (N, 3, 3) moves the input's sampling points; ``half`` is the type of the upper layers, on GPUs."""
        if ws.is_cuda or torch.is_grad_enabled():
            return self.compute(ws, transform, half)
        moves = [None] * len(ws) if transform is None else transform.split(1)
        return torch.cat([self.compute(w, move, half) for w, move in zip(ws.split(1), moves, strict=True)])

    def compute(self, ws: Tensor, transform: Tensor | None, half: torch.dtype) -> Tensor:
        x = self.input(ws[:, 0], transform)
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x.to(half if layer.plan.half else torch.float32), ws[:, i])
        return x.float() * self.output_scale


class Generator(nn.Module):
    """The whole network; lengths and rates as in ``alias_free``, ``widths`` the channels after layers 0 to n-1."""

    def __init__(
        self,
        *,
        z_size: int = 512,
        w_size: int = 512,
        c_size: int = 0,
        mapping_layers: int = 2,
        size: int = 256,
        image_channels: int = 3,
        widths: Sequence[int] = (512,) * 10 + (406, 256, 128, 128),
        kernel: int = 3,
        radial: bool = False,
        critical: int = 2,
        margin: int = 10,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband: float = 2**0.3,
        taps: int = 6,
        oversampling: int = 2,
        conv_clamp: float | None = 256,
        output_scale: float = 0.25,
        half_levels: int = 4,
    ) -> None:
        super().__init__()
        signal = alias_free.progression(size, len(widths), critical, first_cutoff, first_stopband, last_stopband, margin)
        layers = alias_free.plan(
            signal,
            widths,
            image_channels=image_channels,
            critical=critical,
            kernel=kernel,
            radial=radial,
            taps=taps,
            oversampling=oversampling,
            half_levels=half_levels,
        )
        self.size, self.c_size = size, c_size
        self.mapping = Mapping(z_size, w_size, c_size, mapping_layers)
        self.synthesis = Synthesis(w_size, layers, conv_clamp, output_scale)

    def freeze(self, half: torch.dtype = torch.float32) -> Generator:
        """Ready for inference alone: computes once what only depends on the parameters. ``half`` as in ``Synthesis.forward``."""
        for module in self.eval().requires_grad_(False).modules():
            if isinstance(module, Linear):
                module.freeze()
            elif isinstance(module, Layer):
                module.freeze(half if module.plan.half else torch.float32)
        return self

    def forward(self, z: Tensor, c: Tensor | None = None, transform: Tensor | None = None) -> Tensor:
        w = self.mapping(z, c)
        images: Tensor = self.synthesis(w[:, None].expand(-1, self.synthesis.num_ws, -1), transform)
        return images
