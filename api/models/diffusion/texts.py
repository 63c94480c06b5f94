"""From prompts to what a denoising network is told: embeddings of whole prompts, however long, with weights.

A text encoder of the CLIP kind reads a window of tokens; a longer prompt is read window by window and the embeddings stand one after the
other (as cross-attention does not mind how many there are). T5 has no such window and reads longer texts at once. A weight scales its
tokens' embeddings, after which the whole gets its old length back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from api.models.diffusion.prompts import Piece

Pieces = tuple[Piece, ...]
CACHE = 32


@dataclass(frozen=True, slots=True)
class Told:
    """``tokens`` (1, length, width) for cross-attention, and for some networks ``pooled`` (1, width), a summary."""

    tokens: Tensor
    pooled: Tensor | None = None


class Window:
    """A CLIP text encoder with its tokenizer. ``layer`` is the hidden layer that is wanted; 0 the finished output."""

    def __init__(self, tokenizer: Any, encoder: Any, layer: int) -> None:
        self.tokenizer, self.encoder, self.layer = tokenizer, encoder, layer
        self.size = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def count(self, pieces: Pieces) -> int:
        """How many windows the pieces fill."""
        return max(1, ceil(len(spell(self.tokenizer, pieces)) / (self.size - 2)))

    def encode(self, pieces: Pieces, chunks: int) -> Told:
        tokens, room = spell(self.tokenizer, pieces), self.size - 2
        windows = [self.frame(tokens[start * room : (start + 1) * room]) for start in range(chunks)]
        ids = torch.tensor([[token for token, _ in window] for window in windows], device=device_of(self.encoder))
        found = self.encoder(ids, output_hidden_states=self.layer != 0)
        hidden = found.hidden_states[self.layer] if self.layer else found.last_hidden_state
        pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
        weights = [weight for window in windows for _, weight in window]
        return Told(weigh(hidden.flatten(0, 1)[None], weights), pooled[:1])

    def frame(self, tokens: list[tuple[int, float]]) -> list[tuple[int, float]]:
        ends = [(self.tokenizer.bos_token_id, 1.0), *tokens, (self.tokenizer.eos_token_id, 1.0)]
        return ends + [(self.tokenizer.pad_token_id, 1.0)] * (self.size - len(ends))


class Scroll:
    """A T5 encoder with its tokenizer: ``size`` tokens, or a multiple of it."""

    def __init__(self, tokenizer: Any, encoder: Any, size: int) -> None:
        self.tokenizer, self.encoder, self.size = tokenizer, encoder, size

    def count(self, pieces: Pieces) -> int:
        return max(1, ceil((len(spell(self.tokenizer, pieces)) + 1) / self.size))

    def encode(self, pieces: Pieces, chunks: int) -> Told:
        tokens = [*spell(self.tokenizer, pieces), (self.tokenizer.eos_token_id, 1.0)]
        tokens += [(self.tokenizer.pad_token_id, 1.0)] * (self.size * chunks - len(tokens))
        ids = torch.tensor([[token for token, _ in tokens]], device=device_of(self.encoder))
        return Told(weigh(self.encoder(ids)[0], [weight for _, weight in tokens]))


def device_of(encoder: Any) -> Any:
    """Where its input is wanted; weights that are off-loaded come there by themselves."""
    hook = getattr(encoder, "_hf_hook", None)
    return getattr(hook, "execution_device", None) or encoder.device


def spell(tokenizer: Any, pieces: Pieces) -> list[tuple[int, float]]:
    """Tokens with their weights."""
    return [
        (token, weight)
        for text, weight in pieces
        for token in tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    ]


def weigh(embedded: Tensor, weights: Sequence[float]) -> Tensor:
    """(1, length, width) scaled token by token, keeping its norm."""
    if all(weight == 1 for weight in weights):
        return embedded
    scaled = embedded * torch.tensor(weights, dtype=embedded.dtype, device=embedded.device)[None, :, None]
    return scaled * (embedded.norm() / scaled.norm().clamp(min=1e-6))


def pad(tokens: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, width - tokens.shape[-1]))


class Texts:
    """The text encoders of a pipeline, put together as its network wants them. Remembers the last texts."""

    def __init__(self, encoders: Sequence[Window | Scroll], join: Callable[[Sequence[Told]], Told], zero_negative: bool = False) -> None:
        self.encoders, self.join, self.zero_negative = encoders, join, zero_negative
        self.cache: OrderedDict[tuple[Pieces, int], Told] = OrderedDict()

    def count(self, variants: Sequence[Pieces]) -> int:
        """The windows that the longest of the variants fills."""
        return max(encoder.count(pieces) for pieces in variants for encoder in self.encoders)

    def encode(self, pieces: Pieces, chunks: int) -> Told:
        """One text alone: what it becomes does not depend on its neighbours."""
        key = (pieces, chunks)
        if key not in self.cache:
            self.cache[key] = self.join([encoder.encode(pieces, chunks) for encoder in self.encoders])
            if len(self.cache) > CACHE:
                self.cache.popitem(last=False)
        self.cache.move_to_end(key)
        return self.cache[key]

    def encode_negative(self, pieces: Pieces, chunks: int) -> Told:
        told = self.encode(pieces, chunks)
        if pieces or not self.zero_negative:
            return told
        return Told(torch.zeros_like(told.tokens), None if told.pooled is None else torch.zeros_like(told.pooled))


def texts_of(pipeline: Any) -> Texts:
    """The encoders of a pipeline by what it has, in the order in which its network was trained."""
    match kind_of(pipeline):
        case "xl":
            names = [name for name in ("", "_2") if getattr(pipeline, f"text_encoder{name}", None) is not None]
            encoders = [Window(getattr(pipeline, f"tokenizer{name}"), getattr(pipeline, f"text_encoder{name}"), -2) for name in names]
            return Texts(encoders, join_xl, bool(pipeline.config.get("force_zeros_for_empty_prompt")))
        case "sd3":
            return sd3_texts(pipeline)
        case "flux":
            window = Window(pipeline.tokenizer, pipeline.text_encoder, 0)
            scroll = Scroll(pipeline.tokenizer_2, pipeline.text_encoder_2, 512)
            return Texts([window, scroll], lambda told: Told(told[1].tokens, told[0].pooled))
        case _:
            return Texts([Window(pipeline.tokenizer, pipeline.text_encoder, 0)], lambda told: Told(told[0].tokens))


def kind_of(pipeline: Any) -> str:
    """How the pipeline takes its texts."""
    name = type(pipeline).__name__
    kinds = {"StableDiffusionXL": "xl", "StableDiffusion3": "sd3", "Flux": "flux"}
    return next((kind for begin, kind in kinds.items() if name.startswith(begin)), "clip")


def join_xl(told: Sequence[Told]) -> Told:
    return Told(torch.cat([one.tokens for one in told], -1), told[-1].pooled)


def sd3_texts(pipeline: Any) -> Texts:
    width = pipeline.transformer.config.joint_attention_dim
    encoders: list[Window | Scroll] = [
        Window(pipeline.tokenizer, pipeline.text_encoder, -2),
        Window(pipeline.tokenizer_2, pipeline.text_encoder_2, -2),
    ]
    if pipeline.text_encoder_3 is not None:
        encoders.append(Scroll(pipeline.tokenizer_3, pipeline.text_encoder_3, 256))

    def join(told: Sequence[Told]) -> Told:
        clip = pad(torch.cat([told[0].tokens, told[1].tokens], -1), width)
        # Without T5 its place is filled with zeros, as in training.
        scroll = told[2].tokens if len(told) > 2 else clip.new_zeros(1, 256, width)
        assert told[0].pooled is not None
        assert told[1].pooled is not None
        return Told(torch.cat([clip, scroll], 1), torch.cat([told[0].pooled, told[1].pooled], -1))

    return Texts(encoders, join)
