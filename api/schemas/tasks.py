"""What a task is asked to make: the same parameters that the routes take, told apart by ``params_type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from api.models.base import Info
from api.models.jobs import Pixels
from api.schemas.diffusion import Img2ImgTask, InpaintTask, Text2ImgTask
from api.schemas.projection import ProjectTask
from api.schemas.recipes import generate_recipe, synthesize_recipe
from api.schemas.requests import BlendQuery, GenerateQuery, GenerateRequestBody, MixQuery, ReconstructionRequestBody
from api.schemas.walks import InterpolateTask
from api.schemas.work import PictureTask, Work


class GenerateTask(GenerateQuery, GenerateRequestBody, PictureTask):
    kind = "Generate"
    params_type: Literal["generate"]
    count: Literal[1] = Field(1, description="A task makes one picture")

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        (job,) = self.jobs(info, self.latent)
        return Work(job, self.encoding(info), generate_recipe(info, job))


class BlendTask(BlendQuery, ReconstructionRequestBody, PictureTask):
    kind = "Synthesize"
    params_type: Literal["blend"]
    count: Literal[1] = Field(1, description="A task makes one picture")

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        (job,) = self.jobs(info, self.arrays(info))
        return Work(job, self.encoding(info), synthesize_recipe(info, job))


class MixTask(MixQuery, ReconstructionRequestBody, PictureTask):
    kind = "Synthesize"
    params_type: Literal["mix"]
    count: Literal[1] = Field(1, description="A task makes one picture")

    def work(self, info: Info, pictures: Mapping[str, Pixels]) -> Work:
        (job,) = self.jobs(info, self.arrays(info))
        return Work(job, self.encoding(info), synthesize_recipe(info, job))


Tasks = GenerateTask | BlendTask | MixTask | InterpolateTask | ProjectTask | Text2ImgTask | Img2ImgTask | InpaintTask
AnyTask = Annotated[Tasks, Field(discriminator="params_type")]
READER: TypeAdapter[Tasks] = TypeAdapter(AnyTask)


def read_task(params: Mapping[str, Any]) -> Tasks:
    """A stored task's parameters."""
    return READER.validate_python(dict(params))


class Made(BaseModel):
    blob_id: str
    image_id: str | None = Field(None, description="The picture's id in the history, if there is one")
    style: str | None = Field(None, description="project: the styles that were found, w+, as base64 of `.npy`")
    parameters_used: dict[str, Any] = Field(description="What was really used, the seed included")


class Event(BaseModel):
    """What became of a task. Fields that do not belong to its type are absent."""

    event_type: Literal["pending", "started", "progress", "finished", "cancelled", "failed"]
    task_id: str
    id: int = Field(description="Grows over all tasks; `since` of the WebSocket")
    number: int = Field(description="Counts a task's events from 1; the id in its event stream")
    created: float = Field(description="Unix seconds")
    position: int | None = Field(None, description="pending: tasks before this one")
    wait: float | None = Field(None, description="pending: seconds until it is done, as far as can be told")
    step: int | None = Field(None, description="progress: steps that are done")
    steps: int | None = Field(None, description="progress: steps in all")
    preview: str | None = Field(None, description="progress, on wish: a small JPEG as a data URL")
    image: Made | None = Field(None, description="finished: the picture")
    reason: str | None = Field(None, description="cancelled, failed, and a task that is pending again: why")
