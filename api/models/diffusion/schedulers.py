"""Schedulers (samplers) by the names that people know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from api.errors import BadInput

ORDER = 4


class Scheduler(Protocol):
    config: Any

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any: ...


class LinearMultistepScheduler(EulerDiscreteScheduler):
    """Linear multistep sampling as in k-diffusion (Karras et al. 2022, appendix; Adams–Bashforth on uneven steps).

    The library's own needs SciPy for an integral of polynomials, which quadrature solves exactly.
    """

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self.slopes: list[Tensor] = []

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **options: Any) -> Any:
        """The next sample in a tuple, as with ``return_dict=False``; noise is never added."""
        if self.step_index is None:
            self._init_step_index(timestep)
        i = self.step_index
        # Euler's step gives the slope at this noise level: (x' - x) / (σ' - σ).
        (moved, *rest) = super().step(model_output, timestep, sample, return_dict=False)
        width = self.sigmas[i + 1] - self.sigmas[i]
        self.slopes = [*self.slopes, (moved.float() - sample.float()) / width][-ORDER:]
        weights = adams_bashforth(self.sigmas[: i + 2].double().numpy(), len(self.slopes))
        total = sum((float(w) * slope for w, slope in zip(weights, reversed(self.slopes), strict=True)), torch.zeros_like(self.slopes[-1]))
        return ((sample.float() + total).to(model_output.dtype), *rest)


def adams_bashforth(sigmas: np.ndarray[Any, np.dtype[np.float64]], order: int) -> list[float]:
    """Integrals between the last two of ``sigmas`` of the Lagrange polynomials of the ``order`` levels before the last, latest first."""
    nodes = sigmas[-2 : -2 - order : -1]
    places, weights = np.polynomial.legendre.leggauss(ORDER)
    low, high = sigmas[-2], sigmas[-1]
    x = (high - low) / 2 * places + (high + low) / 2
    found = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        polynomial = np.prod([(x - other) / (node - other) for other in others], axis=0) if len(others) else np.ones_like(x)
        found.append(float((high - low) / 2 * np.sum(weights * polynomial)))
    return found


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "plms": (PNDMScheduler, {"skip_prk_steps": True}),
    "k-lms": (LinearMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "dpm++ 2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++ 2m karras": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
}
OWN = "default"
"""The pipeline's own scheduler where it is none of the above."""


def names_for(own: Scheduler) -> tuple[str, ...]:
    """The schedulers that a pipeline can use. Flow matching (SD 3, Flux) has noise levels of another kind: it keeps its own."""
    if is_flow(own):
        return (name_of(own),)
    return tuple(SCHEDULERS) if name_of(own) != OWN else (OWN, *SCHEDULERS)


def name_of(own: Scheduler) -> str:
    kind = type(own).__name__
    if kind == "FlowMatchEulerDiscreteScheduler":
        return "euler"
    if kind == DPMSolverMultistepScheduler.__name__:
        return "dpm++ 2m karras" if own.config.use_karras_sigmas else "dpm++ 2m"
    return next((name for name, (cls, _) in SCHEDULERS.items() if cls.__name__ == kind), OWN)


def is_flow(own: Scheduler) -> bool:
    return "FlowMatch" in type(own).__name__


def canonical(name: str, known: tuple[str, ...]) -> str:
    """The known name that ``name`` means, spaces, case and dashes aside. Raises ``BadInput``."""
    for candidate in known:
        if plain(candidate) == plain(name):
            return candidate
    raise BadInput(f"scheduler {name[:40]!r} is unknown to this model; known: {', '.join(known)}")


def plain(name: str) -> str:
    return name.lower().replace("dpmpp", "dpm++").translate({ord(letter): None for letter in " -_"})


def build(name: str, own: Scheduler) -> Scheduler:
    """A fresh scheduler: they hold a run's state."""
    if is_flow(own) or name == OWN:
        fresh: Scheduler = type(own).from_config(own.config)
        return fresh
    cls, options = SCHEDULERS[name]
    found: Scheduler = cls.from_config(usable(own.config, cls), **options)
    return found


def usable(config: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """The settings that the class knows: what is special to another one would only be warned of."""
    wanted = cls._get_init_keys(cls)
    return {key: value for key, value in config.items() if key in wanted}
