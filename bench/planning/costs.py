"""What pictures and requests cost, in seconds: a JSON or TOML file, which ``measure`` writes and anybody may edit.

``seconds`` of a model says how long its device is at work on so many pictures together; sizes between those told are interpolated.
"""

from __future__ import annotations

import bisect
import functools
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from api.engine.lane import CALM
from bench.planning.arrivals import BadFile

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cost(Strict):
    """What a model costs. A ``steps`` above 0 makes it a long one, as diffusion is; ``seconds`` are then of so many steps."""

    seconds: dict[PositiveInt, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    cores: float = Field(default=0.0, ge=0)  # of the host that a batch keeps at work; 0: a GPU, which takes none of them
    team: PositiveInt = 1  # cores that compute a lone picture
    alone: Seconds = 0.0  # that they take for it
    calm: Seconds = CALM  # for which no two pictures may have been wanted at once before
    encode: Seconds = 0.0  # of a core, for a picture
    max_batch: PositiveInt = 16
    steps: int = Field(default=0, ge=0)
    bytes: float = Field(default=0.0, ge=0)  # of an encoded picture

    @model_validator(mode="after")
    def check(self) -> Cost:
        if 1 not in self.seconds:
            raise ValueError("seconds of a batch of 1 are needed")
        if self.team > 1 and not self.alone:
            raise ValueError("the seconds that a team takes for a lone picture (alone) are needed")
        return self

    @functools.cached_property
    def table(self) -> Sequence[float]:
        """Seconds for 0, 1, … ``max_batch`` pictures. Beyond the largest size that was told each picture costs what the last ones did."""
        sizes = sorted(self.seconds)
        return [0.0, *(self.between(sizes, size) for size in range(1, self.max_batch + 1))]

    def between(self, sizes: Sequence[int], size: int) -> float:
        if len(sizes) == 1:
            return self.seconds[sizes[0]] * size / sizes[0]
        right = min(max(bisect.bisect_left(sizes, size), 1), len(sizes) - 1)
        low, high = sizes[right - 1], sizes[right]
        slope = (self.seconds[high] - self.seconds[low]) / (high - low)
        return self.seconds[low] + slope * (size - low)


class Costs(Strict):
    """All that a plan is made from. ``client``, ``web`` and ``engine`` are seconds of one core for a request; ``latency`` is no core's."""

    note: str = ""  # when and on what it was measured
    cores: int = Field(default=0, ge=0)  # of a host; 0: never short of them
    devices: int = Field(default=1, ge=1)  # of a host
    local: bool = False  # web workers ask the devices of their own host only, as without Ray
    workers: int = Field(default=1, ge=1)  # web workers of a host
    threads: int = Field(default=1, ge=1)  # batches that a device computes at once: one on a GPU, one for each core on a CPU
    together: float = Field(default=1.0, ge=1)  # so much longer a batch takes while all threads compute
    scatter: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()  # and factors of that, each as likely as the others
    encoders: int = Field(default=2, ge=1)
    max_queue: int = Field(default=1024, ge=1)
    deadline: float = Field(default=60.0, gt=0)
    client: Seconds = 0.0  # where the load comes from the same cores
    web: Seconds = 0.0
    engine: Seconds = 0.0
    latency: Seconds = 0.0
    models: dict[str, Cost]

    @property
    def crowd(self) -> list[float]:
        """The speed of each thread while none, one, … all of a device compute."""
        if self.threads == 1 or self.together == 1:
            return []
        return [1 / (1 + (self.together - 1) * max(0, count - 1) / (self.threads - 1)) for count in range(self.threads + 1)]


def read(path: Path) -> Costs:
    """Raises ``BadFile``."""
    try:
        content = path.read_text(encoding="utf-8")
        return Costs.model_validate(tomllib.loads(content) if path.suffix == ".toml" else json.loads(content))
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {error.strerror if isinstance(error, OSError) else 'is not text'}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadFile(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise BadFile(f"{path}: {error}") from None


def write(path: Path, costs: Costs) -> None:
    path.write_text(json.dumps(costs.model_dump(exclude_defaults=True), indent=1) + "\n", encoding="utf-8")
