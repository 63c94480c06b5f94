"""What a client is told about a model."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import BaseModel, Field

from api.engine.wire import Picture
from api.models.base import Info


class Model(BaseModel):
    id: str = Field(min_length=1, examples=["faces"])
    name: str = Field(examples=["Cartoon faces"])
    description: str
    conditional: bool = Field(examples=[True])
    labels: list[str] | None = Field(min_length=1, examples=[["A", "B", "C"]], description="The classes of a conditional model")
    width: int = Field(ge=1, examples=[64])
    height: int = Field(ge=1, examples=[64])
    lossy: bool = Field(examples=[False])
    mimeType: str = Field(examples=["image/png"])
    example: str = Field(description="A picture of this model in base64")
    family: str = Field(examples=["precure"], description="The network's kind")
    latentSize: int = Field(examples=[128], description="Length of a `latent`")
    styleSize: int = Field(examples=[128], description="Length of a `style`")
    levels: int = Field(examples=[5], description="How many styles a picture is made of")
    noises: list[str] = Field(examples=[["random", "none"]], description="Values of `noise` that the model knows")
    parameters: int = Field(description="Number of weights")
    device: str = Field(examples=["cpu"])
    kinds: list[str] = Field(examples=[["Generate", "Synthesize"]], description="The kinds of work that it does")
    extra: dict[str, Any] = Field(description="What its family tells of it: a diffusion model's modes, schedulers and bounds")

    @classmethod
    def of(cls, info: Info, example: Picture) -> Model:
        return cls(
            id=info.id,
            name=info.name,
            description=info.description,
            conditional=info.conditional,
            labels=None if info.labels is None else list(info.labels),
            width=info.width,
            height=info.height,
            lossy=info.lossy,
            mimeType=example.mime_type,
            example=base64.b64encode(example.data).decode(),
            family=info.family,
            latentSize=info.z_size,
            styleSize=info.w_size,
            levels=info.levels,
            noises=list(info.noises),
            parameters=info.parameters,
            device=info.device,
            kinds=list(info.kinds),
            extra=dict(info.extra),
        )
