"""The little language of prompts: emphasis and alternation.

``(words)`` weighs 1.1 times, ``((words))`` 1.21 times, ``(words:1.3)`` as told, ``[words]`` 1/1.1 times; ``[a|b]`` takes a and b in
turns, a step each, and ``[a,b,0.4]`` takes a for the first 40 % of the steps and b from then on. A backslash before a bracket, ``|`` or
``\\`` takes it as it is; a bracket without its partner is a letter like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from api.errors import BadInput

EMPHASIS = 1.1
MAX_DEPTH, MAX_WEIGHT = 16, 10.0
SPECIAL = "()[]|\\"
NUMBER = r"\s*(\d{1,4}(?:\.\d{0,8})?|\.\d{1,8})\s*"
WEIGHT = re.compile(rf"(.*):{NUMBER}", re.DOTALL)
SHARE = re.compile(NUMBER)

Piece = tuple[str, float]  # a text and its weight


@dataclass(frozen=True, slots=True)
class Literal:
    """A letter that was escaped: no separator."""

    text: str


@dataclass(frozen=True, slots=True)
class Weighted:
    parts: tuple[Node, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Turns:
    """The options in turns, or, with ``share``, the first for that share of the steps and then the second."""

    options: tuple[tuple[Node, ...], ...]
    share: float | None = None


Node = str | Literal | Weighted | Turns


@dataclass(slots=True)
class Frame:
    """An open bracket and what has been read since."""

    bracket: str
    parts: list[Node] = field(default_factory=list)

    def add(self, letter: str) -> None:
        if self.parts and isinstance(last := self.parts[-1], str):
            self.parts[-1] = last + letter
        else:
            self.parts.append(letter)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that has been read."""

    parts: tuple[Node, ...]

    def at(self, index: int, total: int) -> tuple[Piece, ...]:
        """What holds at step ``index`` of ``total``, neighbours of one weight joined."""
        pieces: list[Piece] = []
        for text, weight in flatten(self.parts, 1.0, index, total):
            if pieces and pieces[-1][1] == weight:
                pieces[-1] = (pieces[-1][0] + text, weight)
            elif text:
                pieces.append((text, weight))
        return tuple(pieces)

    def variants(self, total: int) -> list[tuple[Piece, ...]]:
        """What holds at any of the steps, each once."""
        return list(dict.fromkeys(self.at(index, total) for index in range(total if varies(self.parts) else 1)))


def read(text: str) -> Prompt:
    """Raises ``BadInput`` for brackets nested too deeply and for weights too large."""
    frames = [Frame("")]
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            follower = next(letters, "")
            frames[-1].parts.append(Literal(follower if follower and follower in SPECIAL else letter + follower))
        elif letter in "([":
            if len(frames) > MAX_DEPTH:
                raise BadInput(f"the prompt's brackets are nested more than {MAX_DEPTH} deep")
            frames.append(Frame(letter))
        elif letter in ")]" and frames[-1].bracket == {")": "(", "]": "["}[letter]:
            frame = frames.pop()
            frames[-1].parts.append(close_round(frame.parts) if letter == ")" else close_square(frame.parts))
        else:
            frames[-1].add(letter)
    while len(frames) > 1:
        frame = frames.pop()
        frames[-1].parts += [Literal(frame.bracket), *frame.parts]
    return Prompt(tuple(frames[0].parts))


def close_round(parts: list[Node]) -> Weighted:
    if parts and isinstance(last := parts[-1], str) and (match := WEIGHT.fullmatch(last)):
        weight = float(match[2])
        if weight > MAX_WEIGHT:
            raise BadInput(f"weight {match[2]} in the prompt is too large; at most {MAX_WEIGHT:g}")
        return Weighted((*parts[:-1], match[1]), weight)
    return Weighted(tuple(parts), EMPHASIS)


def close_square(parts: list[Node]) -> Weighted | Turns:
    if len(options := split(parts, "|")) > 1:
        return Turns(options)
    options = split(parts, ",")
    if len(options) == 3 and len(options[2]) == 1 and isinstance(last := options[2][0], str) and (match := SHARE.fullmatch(last)):
        share = float(match[1])
        if share <= 1:
            return Turns(options[:2], share)
    return Weighted(tuple(parts), 1 / EMPHASIS)


def split(parts: Sequence[Node], separator: str) -> tuple[tuple[Node, ...], ...]:
    options: list[list[Node]] = [[]]
    for part in parts:
        if isinstance(part, str):
            first, *others = part.split(separator)
            options[-1].append(first)
            options += [[other] for other in others]
        else:
            options[-1].append(part)
    return tuple(tuple(option) for option in options)


def flatten(parts: Sequence[Node], weight: float, index: int, total: int) -> Iterator[Piece]:
    for part in parts:
        match part:
            case str():
                yield part, weight
            case Literal(text):
                yield text, weight
            case Weighted(inner, factor):
                yield from flatten(inner, weight * factor, index, total)
            case Turns(options, None):
                yield from flatten(options[index % len(options)], weight, index, total)
            case Turns(options, share):
                yield from flatten(options[0] if index < (share or 0.0) * total else options[1], weight, index, total)


def varies(parts: Sequence[Node]) -> bool:
    return any(isinstance(part, Turns) or (isinstance(part, Weighted) and varies(part.parts)) for part in parts)
