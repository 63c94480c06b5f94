"""The JSON answers that hold pictures. Names, order and bounds are those of the original StyleGAN API; what is new follows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field

from api.engine.arrays import encode_array
from api.engine.wire import Picture
from api.models.jobs import Floats

ARRAY = "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDIsKSwgfSAg…"

STYLE = "The style as base64 of `.npy`, float32: w, (styleSize,), or w+, (levels, styleSize), where levels differ"


class Image(BaseModel):
    model: str = Field(min_length=1, examples=["faces"])
    width: int = Field(ge=1, examples=[64])
    height: int = Field(ge=1, examples=[64])
    mimeType: str = Field(examples=["image/png"])
    data: str = Field(description="The picture in base64", examples=["iVBORw0KGgo…"])

    @classmethod
    def common(cls, model_id: str, picture: Picture) -> dict[str, Any]:
        return {
            "model": model_id,
            "width": picture.width,
            "height": picture.height,
            "mimeType": picture.mime_type,
            "data": base64.b64encode(picture.data).decode(),
            "seed": picture.seed,
        }

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        """The answer for one picture."""
        raise NotImplementedError(cls.__name__)

    @classmethod
    def of(cls, model_id: str, pictures: Sequence[Picture]) -> Self:
        """The answer for a request: its first picture, with the others behind it."""
        first, *others = (cls.build(model_id, picture) for picture in pictures)
        return first.model_copy(update={"more": others}) if others else first


class SimpleImage(Image):
    style: str = Field(description=STYLE, examples=[ARRAY])
    seed: int = Field(ge=0, lt=2**32, description="The seed that was used")
    more: list[SimpleImage] | None = Field(None, description="The second picture and what follows, where `count` asked for several")

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        return cls.model_construct(**cls.common(model_id, picture), style=encode_array(shortest(picture)), more=None)


class SimplePureImage(Image):
    style: str = Field(description=STYLE, examples=[ARRAY])
    label: str | None = Field(examples=["A"])
    latent: str = Field(description="The latent z as base64 of `.npy`, float32, (latentSize,)", examples=[ARRAY])
    seed: int = Field(ge=0, lt=2**32, description="The seed that was used")
    more: list[SimplePureImage] | None = Field(None, description="The second picture and what follows, where `count` asked for several")

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        assert picture.latent is not None
        style, latent = encode_array(shortest(picture)), encode_array(picture.latent)
        return cls.model_construct(**cls.common(model_id, picture), style=style, label=picture.label, latent=latent, more=None)


class CompoundImage(Image):
    styles: list[str] = Field(min_length=1, description="One style for each level", examples=[[ARRAY, ARRAY, ARRAY, ARRAY]])
    seed: int = Field(ge=0, lt=2**32, description="The seed that was used")
    more: list[CompoundImage] | None = Field(None, description="The second picture and what follows, where `count` asked for several")

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        assert picture.styles is not None
        styles = [encode_array(style) for style in picture.styles]
        return cls.model_construct(**cls.common(model_id, picture), styles=styles, more=None)


def shortest(picture: Picture) -> Floats:
    """The picture's style: w, (w_size,), if it is the same at all levels, else w+, (levels, w_size)."""
    assert picture.styles is not None
    first = picture.styles[0]
    return first if picture.styles.tobytes() == first.tobytes() * len(picture.styles) else picture.styles
