"""What people may write about a face: random captions of many forms, and the attributes by which obedience is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from people import ADJECTIVES, BACKGROUNDS, HAIRS, IRISES, SHIRTS, SKINS, Face, caption, hair_style, nearest

MOOD_WORDS = {
    "happy": ("smiling", "happy", "cheerful"),
    "surprised": ("surprised", "astonished"),
    "angry": ("angry", "furious"),
    "sad": ("sad", "unhappy"),
    "neutral": ("calm", "neutral", "serious"),
}
NOUNS = ("face", "face", "face", "person", "portrait", "cartoon face", "character", "avatar")
CHOICES = {
    "mood": tuple(ADJECTIVES.values()),
    "hair": tuple(HAIRS),
    "glasses": ("none", "round", "square"),
    "background": tuple(BACKGROUNDS),
}


def attributes(face: Face) -> tuple[int, int, int, int]:
    """The face's places in ``CHOICES``: mood, hair colour, glasses, background."""
    glasses = 0 if face.glasses <= 0.5 else 2 if face.square > 0.5 else 1
    names = list(ADJECTIVES), list(HAIRS), list(BACKGROUNDS)
    mood, hair, background = face.mood, nearest(face.hair, HAIRS), nearest(face.background, BACKGROUNDS)
    return names[0].index(mood), names[1].index(hair), glasses, names[2].index(background)


def held_out(face: Face) -> bool:
    """One in eight combinations of mood, hair colour, glasses and background is never shown in training."""
    mood, hair, glasses, background = attributes(face)
    return (mood * 31 + hair * 17 + glasses * 11 + background * 5 + mood * hair * 3 + glasses * background * 7) % 8 == 3


def describe(face: Face, rng: np.random.Generator) -> str:
    """A caption of a random form. Glasses and buns are always told when they are there, so that silence means none."""
    form = rng.random()
    if form < 0.4:
        return caption(face)
    mood = choose(MOOD_WORDS[face.mood], rng)
    article = "an" if mood[0] in "aeiou" else "a"
    background = tell_background(face, rng)
    traits = tell_traits(face, rng)
    if form < 0.7:
        opening = f"{choose(('', article + ' '), rng)}{mood} {choose(NOUNS, rng)} with {enumerate_words(traits)}"
        return f"{opening}{choose((', ', ' on a ', ', '), rng)}{background}" if background else opening
    parts = [f"{mood} {choose(NOUNS, rng)}" if rng.random() < 0.6 else mood, *traits, *([background] if background else [])]
    rng.shuffle(parts)
    return ", ".join(parts)


def tell_background(face: Face, rng: np.random.Generator) -> str:
    return f"{nearest(face.background, BACKGROUNDS)} background" if rng.random() < 0.9 else ""


def tell_traits(face: Face, rng: np.random.Generator) -> list[str]:
    style = hair_style(face) if rng.random() < 0.7 else ""
    traits = [f"{style} {nearest(face.hair, HAIRS)} hair".strip()]
    if face.bun > 0.5:
        traits.append("a bun")
    if face.glasses > 0.5:
        traits.append(f"{'square' if face.square > 0.5 else 'round'} glasses")
    elif rng.random() < 0.15:
        traits.append("no glasses")
    details = [f"{nearest(face.iris, IRISES)} eyes", f"{nearest(face.skin, SKINS)} skin", f"a {nearest(face.shirt, SHIRTS)} shirt"]
    traits.extend(detail for detail in details if rng.random() < 0.3)
    rng.shuffle(traits)
    return traits


def enumerate_words(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
