"""Torch files of encoders for StyleGAN2 that carry their generator: pixel2style2pixel, encoder4editing and what came of them.

The file is a dictionary; ``state_dict`` has the encoder and, under ``decoder.``, the generator with the names of ``rosinality``;
``latent_avg`` is the mean w, once or for every layer. Only the generator is read.
"""

from __future__ import annotations

from pathlib import Path

from api.models.base import Checkpoint, Description
from api.models.formats import rosinality
from api.models.formats.files import span
from api.models.formats.pickles import refuse
from api.models.formats.rosinality import MARK, Source
from api.models.formats.torchfiles import Tensor

PREFIX = "decoder."


def sniff(path: Path, head: bytes) -> bool:
    """A torch file with a generator inside of something larger."""
    return rosinality.is_torch(head) and PREFIX.encode() + MARK in span(path, rosinality.HEAD)


def describe(path: Path) -> Description:
    """Architecture from names and shapes. Raises ``ConfigError``."""
    return rosinality.description_of(_source(path), "encoder4editing")


def read(path: Path) -> Checkpoint:
    """The generator with the names of our own network. Raises ``ConfigError``."""
    return rosinality.checkpoint_of(_source(path), "encoder4editing", path)


def _source(path: Path) -> Source:
    root = rosinality.load(path)
    state = root.get("state_dict", root)
    if not isinstance(state, dict):
        refuse("'state_dict' is not a dictionary")
    mean = root.get("latent_avg")
    note = "the generator inside of an encoder's file; the encoder is not used"
    return Source(rosinality.tensors_in(state, PREFIX), mean if isinstance(mean, Tensor) else None, (note,))
