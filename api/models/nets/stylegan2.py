"""The StyleGAN2 generator, in the three architectures of the paper and with the classes and the clamp of its ADA successor.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020): equations 1 to 3 for the modulated convolution, figure 7 for
skip and residual connections. Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020): conditional mapping, half
precision with clamping. Tensors are named after the published networks (``synthesis.b64.conv0.weight``).

N is the batch, z (N, z_size) ~ N(0, I), c (N, c_size) one-hot, ws (N, num_ws, w_size): a row for each convolution and the last for the last
to-RGB. Pictures are NCHW in about [-1, 1]. Inside, tensors lie in memory as NHWC, for which CPUs and GPUs have the faster kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.nets.rows import convolve, linear

SLOPE = 0.2
GAIN = sqrt(2)
EPSILON = 1e-8
LEARNING_RATE = 0.01  # of the mapping network, relative to the rest
TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
HALF_CLAMP = 256.0  # where a checkpoint tells none, half precision still needs one

Noise = Sequence[Tensor | None]


class Linear(nn.Module):
    """x ↦ W x + b, scaled at run time so that all parameters learn at the same rate (Karras et al. 2018, section 4.1)."""

    def __init__(self, fan_in: int, fan_out: int, *, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / rate)
        self.bias = nn.Parameter(torch.full((fan_out,), bias))
        self.scale, self.rate = rate / sqrt(fan_in), rate
        self.frozen: tuple[Tensor, Tensor] | None = None

    def freeze(self) -> None:
        """Compute once what only depends on the parameters, which must not change any more."""
        self.frozen = self.scaled()

    def scaled(self) -> tuple[Tensor, Tensor]:
        return self.weight * self.scale, self.bias * self.rate

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, *(self.frozen or self.scaled()))


class Mapping(nn.Module):
    """z and c ↦ w (N, w_size). ``w_avg`` is the mean w, toward which truncation pulls."""

    w_avg: Tensor

    def __init__(self, z_size: int, w_size: int, c_size: int, layers: int) -> None:
        super().__init__()
        self.embed = Linear(c_size, w_size) if c_size else None
        widths = [z_size + (w_size if c_size else 0)] + [w_size] * layers
        for i in range(layers):
            self.add_module(f"fc{i}", Linear(widths[i], widths[i + 1], rate=LEARNING_RATE))
        self.layers = layers
        self.register_buffer("w_avg", torch.zeros(w_size))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        x = normalise(z)
        if self.embed is not None:
            if c is None:
                raise ValueError("a conditional mapping needs classes")
            x = torch.cat([x, normalise(self.embed(c))], dim=1)
        for i in range(self.layers):
            x = F.leaky_relu(self.get_submodule(f"fc{i}")(x), SLOPE) * GAIN
        return x


def normalise(x: Tensor) -> Tensor:
    """Each row divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


class Layer(nn.Module):
    """A 3×3 modulated convolution, upsampling by two if ``up``; noise, bias, leaky ReLU.

    Inputs are scaled by the style and outputs by the demodulation factor, which is equation 3 without making a weight for each
    picture: one dense convolution serves the whole batch.
    """

    noise_const: Tensor

    def __init__(self, w_size: int, fan_in: int, fan_out: int, side: int, *, up: bool, clamp: float | None) -> None:
        super().__init__()
        self.affine = Linear(w_size, fan_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.up, self.clamp, self.side = up, clamp, side

        self.frozen: tuple[Tensor, Tensor] | None = None

    def freeze(self, dtype: torch.dtype = torch.float32) -> None:
        """Compute once what only depends on the parameters, for inputs of ``dtype``."""
        self.frozen = self.kernel(dtype)

    def kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weight as the convolution takes it, and the sum of its squares over the window, (out, in)."""
        weight: Tensor = self.weight
        if dtype == torch.float16:  # keep sums in range; demodulation takes the factor out again
            weight = weight / weight.abs().amax(dim=(1, 2, 3), keepdim=True) / sqrt(weight[0].numel())
        energy = weight.square().sum(dim=(2, 3))
        weight = (weight.transpose(0, 1) if self.up else weight).to(dtype)
        return weight.contiguous(memory_format=torch.channels_last), energy

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """Without gradients x is overwritten: fresh memory costs more than the sums."""
        style: Tensor = self.affine(w)
        if x.dtype == torch.float16:
            style = style / style.abs().amax(dim=1, keepdim=True)
        weight, energy = self.frozen if self.frozen is not None and self.frozen[0].dtype == x.dtype else self.kernel(x.dtype)
        demodulation = torch.rsqrt(linear(style.square(), energy) + EPSILON)
        x = self.convolve(x * spread(style, x) if torch.is_grad_enabled() else x.mul_(spread(style, x)), weight)
        level = GAIN * gain  # leaky ReLU is homogeneous: scaling what enters it scales what leaves it
        plane = None if noise is None else noise * (self.noise_strength * level)
        return activate(x, demodulation * level, self.bias * level, plane, None if self.clamp is None else self.clamp * gain)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.up:
            return convolve(lambda x: F.conv2d(x, weight, padding=1), x)
        x = convolve(lambda x: F.conv_transpose2d(x, weight, stride=2), x)
        kernel = x.new_tensor(TAPS) * 2
        return F.conv2d(x, torch.outer(kernel, kernel).expand(x.shape[1], 1, 4, 4), padding=1, groups=x.shape[1])


def spread(style: Tensor, x: Tensor) -> Tensor:
    """(N, C) as a factor of (N, C, H, W)."""
    return style.to(x.dtype)[:, :, None, None]


def activate(x: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None, clamp: float | None) -> Tensor:
    """leaky_relu(x · scale + bias + noise), clamped. In place where no gradient is asked for: fresh memory costs more than the sums."""
    bias = bias.to(x.dtype)[:, None, None]
    if torch.is_grad_enabled():
        x = x * spread(scale, x) + bias
        x = F.leaky_relu(x if noise is None else x + noise.to(x.dtype), SLOPE)
        return x if clamp is None else x.clamp(-clamp, clamp)
    x = torch.addcmul(bias, x, spread(scale, x), out=x)
    if noise is not None:
        x.add_(noise.to(x.dtype))
    F.leaky_relu_(x, SLOPE)
    return x if clamp is None else x.clamp_(-clamp, clamp)


class ToRGB(nn.Module):
    """A 1×1 convolution, modulated but not demodulated, to the colours; in float32 from here on."""

    def __init__(self, w_size: int, fan_in: int, colours: int, *, clamp: float | None) -> None:
        super().__init__()
        self.affine = Linear(w_size, fan_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(colours, fan_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(colours))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) / sqrt(self.weight.shape[1])
        weights = (self.weight[:, :, 0, 0] * style[:, None]).to(x.dtype)  # (N, colours, in)
        y = project(x, weights) + self.bias.to(x.dtype)[:, None, None]
        return (y if self.clamp is None else y.clamp(-self.clamp, self.clamp)).float()


def project(x: Tensor, weights: Tensor) -> Tensor:
    """x (N, C, H, W), weights (N, K, C) ↦ (N, K, H, W): each pixel of picture n times matrix n, a picture at a time on the CPU."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    y = pixels @ weights.mT if x.is_cuda else torch.stack([a @ b.T for a, b in zip(pixels, weights, strict=True)])
    return y.mT.reshape(x.shape[0], -1, *x.shape[2:])


def double(x: Tensor) -> Tensor:
    """Twice the side, through the binomial filter: samples lie a quarter to each side of the inputs, zero outside."""
    for dim in (2, 3):
        side = x.shape[dim]
        wide = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1))
        left, right = wide.narrow(dim, 0, side), wide.narrow(dim, 2, side)
        x = torch.stack([(left + 3 * x) / 4, (right + 3 * x) / 4], dim + 1).flatten(dim, dim + 1)
    return x


class Block(nn.Module):
    """One resolution: the first has the learned constant and one layer, the others two, of which the first upsamples."""

    def __init__(
        self, w_size: int, fan_in: int, width: int, side: int, colours: int, kind: str, *, last: bool, half: bool, clamp: float | None
    ) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(width, 4, 4)) if side == 4 else None
        self.conv0 = Layer(w_size, fan_in, width, side, up=True, clamp=clamp) if side > 4 else None
        self.conv1 = Layer(w_size, width, width, side, up=False, clamp=clamp)
        self.torgb = ToRGB(w_size, width, colours, clamp=clamp) if last or kind == "skip" else None
        self.skip = Skip(fan_in, width) if side > 4 and kind == "resnet" else None
        self.reduced, self.side = half, side

    @property
    def convs(self) -> int:
        return 1 if self.conv0 is None else 2

    def forward(self, x: Tensor, rgb: Tensor | None, ws: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        if self.conv0 is None:
            x = self.conv1(x, ws[:, 0], noise[0])
        else:
            residue = None if self.skip is None else self.skip(x)
            x = self.conv0(x, ws[:, 0], noise[0])
            x = self.conv1(x, ws[:, 1], noise[1], gain=1.0 if residue is None else sqrt(0.5))
            x = x if residue is None else x + residue
        rgb = None if rgb is None else double(rgb)
        if self.torgb is not None:
            colours = self.torgb(x, ws[:, self.convs])
            rgb = colours if rgb is None else rgb + colours
        return x, rgb


class Skip(nn.Module):
    """The residual connection: a 1×1 convolution without bias, upsampled by two."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[:, :, 0, 0].to(x.dtype) * sqrt(0.5 / self.weight.shape[1])
        return double(project(x, weight.expand(x.shape[0], -1, -1)))


class Synthesis(nn.Module):
    """ws and noise ↦ pictures (N, colours, size, size).

    ``noise`` has one tensor per layer, broadcastable to (N, 1, side, side); ``None`` in place of one or of all switches it off.
    ``noise_sides`` tells the sides, ``constants()`` the noise stored in the checkpoint.
    """

    def __init__(self, w_size: int, widths: Sequence[int], colours: int, kind: str, clamp: float | None, half_levels: int) -> None:
        super().__init__()
        top = len(widths) - 1
        self.blocks: list[Block] = []
        for i, width in enumerate(widths):
            half = i > top - half_levels and i > 0
            limit = HALF_CLAMP if half and clamp is None else clamp
            block = Block(w_size, widths[max(i - 1, 0)], width, 4 << i, colours, kind, last=i == top, half=half, clamp=limit)
            self.add_module(f"b{4 << i}", block)
            self.blocks.append(block)
        self.noise_sides = [block.side for block in self.blocks for _ in range(block.convs)]
        self.num_ws = len(self.noise_sides) + 1

    def constants(self) -> list[Tensor]:
        layers = [layer for block in self.blocks for layer in (block.conv0, block.conv1) if layer is not None]
        return [layer.noise_const[None, None] for layer in layers]

    def forward(self, ws: Tensor, noise: Noise | None = None, half: torch.dtype = torch.float32) -> Tensor:
        """``half`` is the type in which the upper levels compute, on GPUs."""
        planes = list(noise) if noise is not None else [None] * len(self.noise_sides)
        const = self.blocks[0].const
        assert const is not None
        x: Tensor = const.expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        if not torch.is_grad_enabled():
            x = x.clone()  # of a single picture the former is the constant itself, and layers overwrite what they get
        rgb, at = None, 0
        for block in self.blocks:
            x = x.to(half if block.reduced else torch.float32)
            x, rgb = block(x, rgb, ws[:, at : at + block.convs + 1], planes[at : at + block.convs])
            at += block.convs
        assert rgb is not None
        return rgb


class Generator(nn.Module):
    """The whole network; ``widths`` are the channels at 4, 8, 16, …, ``half_levels`` how many of the upper levels may compute in half."""

    def __init__(
        self,
        *,
        z_size: int = 512,
        w_size: int = 512,
        c_size: int = 0,
        mapping_layers: int = 8,
        size: int = 256,
        image_channels: int = 3,
        widths: Sequence[int] = (512, 512, 512, 512, 512, 256, 128),
        architecture: str = "skip",
        conv_clamp: float | None = None,
        half_levels: int = 0,
    ) -> None:
        super().__init__()
        if size != 2 << len(widths):
            raise ValueError(f"{len(widths)} widths make pictures of {2 << len(widths)} pixels, not {size}")
        self.size, self.c_size = size, c_size
        self.mapping = Mapping(z_size, w_size, c_size, mapping_layers)
        self.synthesis = Synthesis(w_size, widths, image_channels, architecture, conv_clamp, half_levels)

    def freeze(self, half: torch.dtype = torch.float32) -> Generator:
        """Ready for inference alone: computes once what only depends on the parameters. ``half`` as in ``Synthesis.forward``."""
        for module in self.eval().requires_grad_(False).modules():
            if isinstance(module, Linear):
                module.freeze()
        for block in self.synthesis.blocks:
            for layer in (block.conv0, block.conv1):
                if layer is not None:
                    layer.freeze(half if block.reduced else torch.float32)
        return self

    def forward(self, z: Tensor, c: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        w = self.mapping(z, c)
        images: Tensor = self.synthesis(w[:, None].expand(-1, self.synthesis.num_ws, -1), noise)
        return images
