"""Which tensors the StyleGAN2 and StyleGAN3 networks of ``api.models.nets`` have, from their arguments; and the reverse.

Every format that ends in these networks checks against it, so that a file with other shapes is refused before torch sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from api.errors import ConfigError
from api.models.nets import alias_free

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Arguments = Mapping[str, Any]

ARCHITECTURES = ("skip", "resnet", "orig")
MAX_SIDE, MAX_WIDTH = 4096, 16384


def mapping_shapes(z_size: int, w_size: int, c_size: int, layers: int) -> dict[str, Shape]:
    """The mapping network, which StyleGAN2-ADA and StyleGAN3 share."""
    shapes: dict[str, Shape] = {"mapping.w_avg": (w_size,)}
    if c_size:
        shapes |= _linear("mapping.embed", c_size, w_size)
    for i in range(layers):
        shapes |= _linear(f"mapping.fc{i}", (z_size + (w_size if c_size else 0)) if i == 0 else w_size, w_size)
    return shapes


def stylegan2_shapes(arguments: Arguments) -> dict[str, Shape]:
    """All tensors of ``api.models.nets.stylegan2.Generator(**arguments)``."""
    w_size, colours, widths = arguments["w_size"], arguments["image_channels"], arguments["widths"]
    shapes: dict[str, Shape] = {"synthesis.b4.const": (widths[0], 4, 4)}
    for level, width in enumerate(widths):
        side, block = 4 << level, f"synthesis.b{4 << level}"
        for name, fan_in in (("conv0", widths[level - 1]), ("conv1", width)) if level else (("conv1", width),):
            shapes |= _conv(f"{block}.{name}", w_size, (width, fan_in, 3, 3))
            shapes |= {f"{block}.{name}.noise_strength": (), f"{block}.{name}.noise_const": (side, side)}
        if arguments["architecture"] == "skip" or level == len(widths) - 1:
            shapes |= _conv(f"{block}.torgb", w_size, (colours, width, 1, 1))
        if arguments["architecture"] == "resnet" and level:
            shapes[f"{block}.skip.weight"] = (width, widths[level - 1], 1, 1)
    return shapes | mapping_shapes(arguments["z_size"], w_size, arguments["c_size"], arguments["mapping_layers"])


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, Shape]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _conv(name: str, w_size: int, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1], **_linear(f"{name}.affine", w_size, weight[1])}


def stylegan2_arguments(
    shapes: Shapes, *, architecture: str | None = None, conv_clamp: float | None = None, half_levels: int = 0
) -> dict[str, Any]:
    """The arguments behind tensors named as in our network. Raises ``ConfigError`` if they fit none."""
    found = (re.fullmatch(r"synthesis\.b(\d{1,5})\.conv1\.weight", name, re.ASCII) for name in shapes)
    blocks = sorted(int(match[1]) for match in found if match)
    if not blocks or blocks != [4 << level for level in range(len(blocks))] or blocks[-1] > MAX_SIDE:
        raise ConfigError(f"checkpoint refused: the resolutions {blocks} are not 4, 8, 16, … up to {MAX_SIDE}")
    if architecture is None:
        architecture = "skip" if "synthesis.b4.torgb.weight" in shapes or len(blocks) == 1 else "orig"
        architecture = "resnet" if "synthesis.b8.skip.weight" in shapes else architecture
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"checkpoint refused: the architecture {architecture!r:.40} is not one of {', '.join(ARCHITECTURES)}")
    arguments = {
        **mapping_arguments(shapes),
        "size": blocks[-1],
        "image_channels": _axis(shapes, f"synthesis.b{blocks[-1]}.torgb.weight", 0),
        "widths": [_axis(shapes, f"synthesis.b{side}.conv1.weight", 0) for side in blocks],
        "architecture": architecture,
        "conv_clamp": conv_clamp,
        "half_levels": half_levels,
    }
    check_shapes(shapes, stylegan2_shapes(arguments))
    return arguments


def mapping_arguments(shapes: Shapes) -> dict[str, Any]:
    layers = sum(name.startswith("mapping.fc") and name.endswith(".weight") for name in shapes)
    w_size = _axis(shapes, "mapping.w_avg", 0)
    c_size = _axis(shapes, "mapping.embed.weight", 1) if "mapping.embed.weight" in shapes else 0
    z_size = _axis(shapes, "mapping.fc0.weight", 1) - (w_size if c_size else 0)
    if z_size < 1:
        raise ConfigError("checkpoint refused: the mapping network takes no latent")
    return {"z_size": z_size, "w_size": w_size, "c_size": c_size, "mapping_layers": layers}


def _axis(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis or not 1 <= shape[axis] <= MAX_WIDTH:
        raise ConfigError(f"checkpoint refused: tensor {name!r} is missing or of an impossible shape {shape}")
    return shape[axis]


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Raise ``ConfigError`` unless both have the same names and shapes."""
    for name, shape in expected.items():
        if name not in found:
            raise ConfigError(f"checkpoint refused: tensor {name!r} is missing")
        if found[name] != shape:
            raise ConfigError(f"checkpoint refused: tensor {name!r} has shape {found[name]}; {shape} is expected")
    extra = sorted(set(found) - set(expected))
    if extra:
        raise ConfigError(f"checkpoint refused: unexpected tensors {', '.join(map(repr, extra[:3]))} ({len(extra)} in all)")


def class_labels(c_size: int) -> tuple[str, ...] | None:
    """Labels for classes that have no names: "0", "1", …; ``None`` for an unconditional network."""
    return tuple(map(str, range(c_size))) if c_size else None


def stylegan3_layers(arguments: Arguments) -> list[alias_free.Layer]:
    """The plan of all layers from the arguments."""
    signal = alias_free.progression(
        arguments["size"],
        len(arguments["widths"]),
        arguments["critical"],
        arguments["first_cutoff"],
        arguments["first_stopband"],
        arguments["last_stopband"],
        arguments["margin"],
    )
    names = ("image_channels", "critical", "kernel", "radial", "taps", "oversampling", "half_levels")
    return alias_free.plan(signal, arguments["widths"], **{name: arguments[name] for name in names})


def stylegan3_shapes(arguments: Arguments) -> dict[str, Shape]:
    """All tensors of ``api.models.nets.stylegan3.Generator(**arguments)``."""
    w_size, width = arguments["w_size"], arguments["widths"][0]
    shapes: dict[str, Shape] = {
        "synthesis.input.weight": (width, width),
        "synthesis.input.transform": (3, 3),
        "synthesis.input.freqs": (width, 2),
        "synthesis.input.phases": (width,),
        **_linear("synthesis.input.affine", w_size, 4),
    }
    for i, layer in enumerate(stylegan3_layers(arguments)):
        name = f"synthesis.layers.{i}"
        shapes |= _conv(name, w_size, (layer.fan_out, layer.fan_in, layer.kernel, layer.kernel))
        shapes[f"{name}.magnitude_ema"] = ()
        if layer.up_taps > 1:
            shapes[f"{name}.up_filter"] = (layer.up_taps,)
        if layer.down_taps > 1:
            shapes[f"{name}.down_filter"] = (layer.down_taps,) * (2 if layer.radial else 1)
    return shapes | mapping_shapes(arguments["z_size"], w_size, arguments["c_size"], arguments["mapping_layers"])


def stylegan3_arguments(shapes: Shapes, *, layers: int, **geometry: Any) -> dict[str, Any]:
    """The arguments behind tensors named as in our network and a geometry. Raises ``ConfigError`` if they do not fit."""
    bounds: dict[str, tuple[float, float]] = {
        "size": (16, MAX_SIDE),
        "critical": (0, layers - 1),
        "margin": (0, 64),
        "half_levels": (0, 16),
        "taps": (1, 32),
    }
    bounds |= {"oversampling": (1, 4), "first_cutoff": (0.1, 1000), "first_stopband": (0.1, 1000), "last_stopband": (1, 4)}
    if not 2 <= layers <= 64:
        raise ConfigError(f"checkpoint refused: a network of {layers} layers")
    for name, (low, high) in bounds.items():
        if not low <= geometry[name] <= high:
            raise ConfigError(f"checkpoint refused: {name} is {geometry[name]}; {low} to {high} is expected")
    arguments = {
        **mapping_arguments(shapes),
        **geometry,
        "image_channels": _axis(shapes, f"synthesis.layers.{layers}.weight", 0),
        "widths": [_axis(shapes, f"synthesis.layers.{i}.weight", 0) for i in range(layers)],
        "kernel": _axis(shapes, "synthesis.layers.0.weight", 2),
    }
    check_shapes(shapes, stylegan3_shapes(arguments))
    return arguments
