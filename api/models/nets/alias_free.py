"""The geometry of StyleGAN3 and its low-pass filters, in NumPy alone.

Karras et al., "Alias-Free Generative Adversarial Networks" (2021): section 3.2 and appendix C for how cutoff, stopband and sampling rate
run through the layers, and for the filters (Kaiser windows around sinc; jinc for the rotation-equivariant kind).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One synthesis layer. Sides in samples, rates in samples per unit, cutoffs and half widths in cycles per unit."""

    fan_in: int
    fan_out: int
    kernel: int
    side_in: int
    side_out: int
    up: int
    down: int
    up_taps: int
    down_taps: int
    radial: bool
    to_rgb: bool
    half: bool
    rate: float  # of the signal while it meets the nonlinearity
    cutoff_in: float
    cutoff_out: float
    width_in: float
    width_out: float

    @property
    def padding(self) -> tuple[int, int]:
        """Samples before and after, at the high rate, that make ``side_out`` come out; negative ones crop."""
        total = (self.side_out - 1) * self.down + 1 - (self.side_in + self.kernel - 1) * self.up + self.up_taps + self.down_taps - 2
        low = (total + self.up) // 2
        return low, total - low

    def up_filter(self) -> Doubles | None:
        return lowpass(self.up_taps, self.cutoff_in, 2 * self.width_in, self.rate) if self.up_taps > 1 else None

    def down_filter(self) -> Doubles | None:
        design = radial_lowpass if self.radial else lowpass
        return design(self.down_taps, self.cutoff_out, 2 * self.width_out, self.rate) if self.down_taps > 1 else None


@dataclass(frozen=True)
class Signal:
    """What the signal is at the output of each layer (index 0 also before the first)."""

    cutoffs: Doubles
    rates: Doubles
    half_widths: Doubles
    sides: NDArray[np.int64]


def progression(
    size: int, layers: int, critical: int, first_cutoff: float, first_stopband: float, last_stopband: float, margin: int
) -> Signal:
    """Cutoffs and stopbands grow geometrically, the last ``critical`` layers are critically sampled (section 3.2, figure 4b)."""
    steps = np.minimum(np.arange(layers + 1) / (layers - critical), 1)
    last = size / 2
    cutoffs = first_cutoff * (last / first_cutoff) ** steps
    stopbands = first_stopband * (last * last_stopband / first_stopband) ** steps
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, size))))
    sides = (rates + 2 * margin).astype(np.int64)
    sides[-2:] = size
    return Signal(cutoffs, rates, np.maximum(stopbands, rates / 2) - cutoffs, sides)


def plan(
    signal: Signal,
    widths: Sequence[int],
    *,
    image_channels: int,
    critical: int,
    kernel: int,
    radial: bool,
    taps: int = 6,
    oversampling: int = 2,
    half_levels: int = 0,
) -> list[Layer]:
    """All layers, the last one to RGB. ``widths`` are the channels of layers 0 to n-1; ``taps`` per unit of up- or downsampling."""
    last = len(signal.rates) - 1
    channels = [*widths, image_channels]
    made = []
    for i in range(last + 1):
        p, rgb = max(i - 1, 0), i == last
        rate = max(signal.rates[p], signal.rates[i]) * (1 if rgb else oversampling)
        up, down = round(rate / signal.rates[p]), round(rate / signal.rates[i])
        made.append(
            Layer(
                fan_in=channels[p],
                fan_out=channels[i],
                kernel=1 if rgb else kernel,
                side_in=int(signal.sides[p]),
                side_out=int(signal.sides[i]),
                up=up,
                down=down,
                up_taps=1 if rgb or up == 1 else taps * up,
                down_taps=1 if rgb or down == 1 else taps * down,
                radial=radial and i < last - critical,
                to_rgb=rgb,
                half=bool(signal.rates[i] * 2**half_levels > signal.rates[-1]) if half_levels else False,
                rate=float(rate),
                cutoff_in=float(signal.cutoffs[p]),
                cutoff_out=float(signal.cutoffs[i]),
                width_in=float(signal.half_widths[p]),
                width_out=float(signal.half_widths[i]),
            )
        )
    return made


def kaiser_window(taps: int, width: float, rate: float) -> Doubles:
    """The window for a transition band of ``width``; Kaiser's estimates (Oppenheim and Schafer, Discrete-Time Signal Processing, 7.5.3)."""
    attenuation = 2.285 * (taps - 1) * np.pi * width / (rate / 2) + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    return np.kaiser(taps, beta)


def lowpass(taps: int, cutoff: float, width: float, rate: float) -> Doubles:
    """(taps,): a sinc under a Kaiser window, with unit gain at zero frequency."""
    x = (np.arange(taps) - (taps - 1) / 2) * 2 * cutoff / rate
    f = np.sinc(x) * kaiser_window(taps, width, rate)
    return f / f.sum()


def radial_lowpass(taps: int, cutoff: float, width: float, rate: float) -> Doubles:
    """(taps, taps): a jinc under the product of two Kaiser windows (equation 8 and appendix C.2); ``taps`` must be even."""
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.pi * np.hypot(x[:, None], x)
    window = kaiser_window(taps, width, rate)
    f = bessel_j1(2 * cutoff * r) / r * window[:, None] * window
    return f / f.sum()


def bessel_j1(x: Doubles) -> Doubles:
    """J₁ by Bessel's integral (DLMF 10.9.2); the trapezoid rule on a periodic integrand converges geometrically."""
    count = 256 + 2 * int(np.max(np.abs(x), initial=0.0))
    t = np.arange(count) * (2 * np.pi / count)
    return np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
