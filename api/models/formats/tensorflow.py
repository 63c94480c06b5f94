"""Pickles of NVIDIA's TensorFlow StyleGAN2 and StyleGAN2-ADA, such as ``stylegan2-ffhq-config-f.pkl``.

The file is a tuple (G, D, Gs) of ``dnnlib.tflib.network.Network``; Gs, the moving average, is the one to serve. A network's state has its
variables as NumPy arrays, its components (synthesis and mapping) as networks, and source texts, which are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from api.models.base import Array, Checkpoint, Description, count_parameters
from api.models.formats import layouts
from api.models.formats.files import check_growth, mapped
from api.models.formats.ndarrays import Ndarray, numpy_names
from api.models.formats.pickles import COMMON, Budget, Name, Names, Stub, load, refuse, table

MARK = b"dnnlib.tflib.network"
TAPS = [1, 3, 3, 1]


class Network(Stub):
    """One network: its state as the file tells it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[Any, object] = {}

    def build(self, state: object) -> None:
        if not isinstance(state, dict):
            refuse("a network whose state is not a dictionary")
        self.state = state

    def parts(self) -> Iterable[object]:
        return (self.state,)

    def components(self) -> dict[Any, object]:
        found = self.state.get("components")
        return found if isinstance(found, dict) else {}

    def settings(self) -> dict[Any, object]:
        found = self.state.get("static_kwargs")
        return found if isinstance(found, dict) else {}

    def variables(self) -> dict[str, Array]:
        """Arrays by name, as views of the file; numbers that are not arrays (such as ``lod``) become scalars."""
        found = self.state.get("variables")
        arrays: dict[str, Array] = {}
        for pair in found if isinstance(found, list) else ():
            match pair:
                case (str() as name, Ndarray(array=array)):
                    arrays[name] = array
                case (str() as name, bool() | int() | float() as number):
                    arrays[name] = np.asarray(float(number), np.float32)
                case _:
                    refuse("a variable that is not a name with an array")
        return arrays


def _network(*args: object) -> Network:
    if args:
        refuse("a network made with arguments")
    return Network()


def _easy_dict(*args: object) -> dict[object, object]:
    if args:
        refuse("an EasyDict with arguments")
    return {}


def names(budget: Budget) -> Names:
    own = table(
        Name("dnnlib.tflib.network.Network", None, _network),
        Name("dnnlib.util.EasyDict", _easy_dict, _easy_dict),
        Name("dnnlib.EasyDict", _easy_dict, _easy_dict),
    )
    return {**COMMON, **numpy_names(budget), **own}


def sniff(path: Path, head: bytes) -> bool:
    return head[:1] == b"\x80" and MARK in head


def describe(path: Path) -> Description:
    """Architecture from the variables' names and shapes. Raises ``ConfigError``."""
    return _description(*_network_of(path))


def read(path: Path) -> Checkpoint:
    """Gs with the names and layouts of our own network. Raises ``ConfigError``."""
    settings, tensors = _network_of(path)
    description = _description(settings, tensors)
    check_growth(sum(array.size for array in tensors.values()), path.stat().st_size)
    return Checkpoint(description=description, tensors={name: floats(name, array) for name, array in tensors.items()})


def floats(name: str, array: Array) -> Array:
    made = np.array(array, np.float32, order="C")
    return made + np.float32(1) if name.endswith(".affine.bias") else made


def _network_of(path: Path) -> tuple[Mapping[Any, object], dict[str, Array]]:
    """The settings, and the variables under our names (still views of the file)."""
    data = mapped(path)
    budget = Budget.of(len(data))
    root = load(data, names(budget), budget)
    if not isinstance(root, tuple) or not root or not isinstance(root[-1], Network):
        refuse("the pickle is not a tuple of networks")
    generator = root[-1]
    synthesis, mapping = (generator.components().get(name) for name in ("synthesis", "mapping"))
    if not isinstance(synthesis, Network) or not isinstance(mapping, Network):
        refuse("the last network has no synthesis and mapping components; a StyleGAN2 generator has both")
    tensors = {
        **_synthesis(synthesis.variables()),
        **_mapping(mapping.variables()),
        "mapping.w_avg": generator.variables().get("dlatent_avg", np.zeros(0, np.float32)),
    }
    return generator.settings(), tensors


def _description(settings: Mapping[Any, object], tensors: Mapping[str, Array]) -> Description:
    if settings.get("resample_kernel", TAPS) != TAPS:
        refuse("the network resamples by another filter than 1, 3, 3, 1, which is the only one that is known here")
    clamp = settings.get("conv_clamp")
    half = settings.get("num_fp16_res", 0)
    arguments = layouts.stylegan2_arguments(
        {name: array.shape for name, array in tensors.items()},
        conv_clamp=float(clamp) if isinstance(clamp, (int, float)) else None,
        half_levels=half if isinstance(half, int) else 0,
    )
    return Description(
        format="tensorflow",
        family="stylegan2",
        arguments=arguments,
        labels=layouts.class_labels(arguments["c_size"]),
        tensors=len(tensors),
        parameters=count_parameters({name: array.shape for name, array in tensors.items()}),
    )


def _synthesis(variables: Mapping[str, Array]) -> dict[str, Array]:
    """Convolutions from HWIO to OIHW (upsampling ones are stored turned by half a turn), dense ones from (in, out) to (out, in)."""
    tensors: dict[str, Array] = {}
    for name, array in variables.items():
        scope, _, leaf = name.rpartition("/")
        side, _, kind = scope.partition("/")
        block = f"synthesis.b{side.partition('x')[0]}"
        if name == "4x4/Const/const":
            tensors["synthesis.b4.const"] = array[0] if array.ndim == 4 and array.size else array
        elif kind in LAYERS:
            tensors |= _layer(f"{block}.{LAYERS[kind]}", leaf, array, turned=kind in ("Conv0_up", "Skip"))
        elif name.startswith("noise") and name[5:].isdecimal() and len(name) < 9:
            tensors[_noise(int(name[5:]))] = array[0, 0] if array.ndim == 4 and array.size else array
        elif name not in ("lod",):
            refuse(f"variable {name[:80]!r} does not belong to a StyleGAN2 synthesis network")
    return tensors


LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}


def _layer(name: str, leaf: str, array: Array, *, turned: bool) -> dict[str, Array]:
    if leaf == "weight" and array.ndim == 4:
        return {f"{name}.weight": (array[::-1, ::-1] if turned else array).transpose(3, 2, 0, 1)}
    if leaf == "mod_weight":
        return {f"{name}.affine.weight": array.T}
    if leaf == "mod_bias":
        return {f"{name}.affine.bias": array}  # less the 1 that ``read`` adds
    if leaf in ("bias", "noise_strength"):
        return {f"{name}.{leaf}": array}
    refuse(f"variable {leaf[:40]!r} of {name} does not belong to a StyleGAN2 layer")


def _noise(number: int) -> str:
    """Noise 0 is that of 4×4, then come two for each resolution."""
    side = 4 << math.ceil(number / 2)
    return f"synthesis.b{side}.conv{1 if number % 2 == 0 else 0}.noise_const"


def _mapping(variables: Mapping[str, Array]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for name, array in variables.items():
        scope, _, leaf = name.rpartition("/")
        target = f"fc{scope[5:]}" if scope.startswith("Dense") else {"LabelEmbed": "embed"}.get(scope)
        if scope == "LabelConcat":
            refuse("a conditional mapping of the first TensorFlow StyleGAN2, which joins classes and latents in another way")
        if target is None or leaf not in ("weight", "bias"):
            refuse(f"variable {name[:80]!r} does not belong to a StyleGAN2 mapping network")
        tensors[f"mapping.{target}.{leaf}"] = array.T if leaf == "weight" else array
    return tensors
