"""What clients send to have a picture's styles found, and what is answered."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api.engine.arrays import encode_array
from api.engine.wire import Picture
from api.errors import BadInput
from api.models.base import Info
from api.models.jobs import Noise, Pixels, Project, Space
from api.models.latents import MOST_STARTS, MOST_STEPS, check_project
from api.schemas.diffusion import Base64, BlobId
from api.schemas.images import ARRAY, CompoundImage
from api.schemas.recipes import digest
from api.schemas.requests import SEEDS, check_kind
from api.schemas.work import PictureTask, Work


class ProjectQuery(BaseModel):
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Of everything random in the search; drawn and told if absent")
    label: str | None = Field(None, min_length=1, description="The class of a conditional model to start from; all if absent")
    steps: int = Field(150, ge=1, le=MOST_STEPS, description="Steps of the search")
    starts: int | None = Field(None, ge=1, le=MOST_STARTS, description="Starts followed side by side at first; 8, of large models fewer")
    space: Space = Field("w+", description="w+ seeks a style for each level; w one for all, which is farther away and easier to edit")
    regularisation: float = Field(0.001, ge=0, le=1, description="Pull toward the mean style, as a small psi would")
    noise: Noise | None = Field(None, description="What the picture is rendered with; the checkpoint's own or none if absent")
    fit_noise: bool = Field(False, description="Fit noise maps along, which are left out again: styles need not explain fine detail")

    def job(self, info: Info, image: Pixels) -> Project:
        """Raises ``BadInput``, ``NoSuchLabel``."""
        check_kind(info, Project.__name__)
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        told = {name: getattr(self, name) for name in ProjectQuery.model_fields if name != "seed"}
        job = Project(model=info.id, seed=seed, image=image[:, :, :3], **told)
        check_project(info, job)
        return job


class ProjectRequestBody(ProjectQuery):
    image: Base64 | None = None
    initial_image: BlobId | None = None

    def source(self) -> tuple[Literal["image", "blob"], str]:
        """Where the picture is. Raises ``BadInput``."""
        if (self.image is None) == (self.initial_image is None):
            raise BadInput("exactly one of image, in base64, and initial_image, a blob's id, is expected")
        return ("image", self.image) if self.image is not None else ("blob", self.initial_image or "")

    def after(self, query: ProjectQuery) -> Self:
        """With what the query tells and this does not."""
        told = query.model_dump(exclude_unset=True)
        return self.model_copy(update={name: value for name, value in told.items() if name not in self.model_fields_set})


def project_recipe(info: Info, job: Project) -> dict[str, Any]:
    recipe: dict[str, Any] = {"Seed": job.seed, "Model": info.id, "Size": f"{info.width}x{info.height}", "Image": digest(job.image)}
    recipe |= {"Steps": job.steps, "Starts": job.starts, "Space": job.space, "Label": job.label, "Noise": job.noise}
    recipe |= {"Regularisation": job.regularisation, "Fit noise": job.fit_noise or None}
    return {key: value for key, value in recipe.items() if value is not None}


class ProjectedImage(CompoundImage):
    style: str = Field(description="The same styles as one w+, (levels, styleSize), for whatever takes styles", examples=[ARRAY])
    label: str | None = Field(examples=["A"])
    psnr: float = Field(description="Of this picture against the middle square of the one that was sent, at the model's size, in decibels")

    @classmethod
    def build(cls, model_id: str, picture: Picture) -> Self:
        assert picture.styles is not None
        styles = [encode_array(style) for style in picture.styles]
        told = {"style": encode_array(picture.styles), "label": picture.label, "psnr": picture.extra["psnr"]}
        return cls.model_construct(**cls.common(model_id, picture), styles=styles, more=None, **told)


class ProjectTask(ProjectQuery, PictureTask):
    kind = "Project"
    params_type: Literal["project"]
    initial_image: BlobId

    @property
    def blobs(self) -> Mapping[str, str]:
        return {"initial_image": self.initial_image}

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        job = self.job(info, pictures["initial_image"])
        return Work(job, self.encoding(info), project_recipe(info, job))
