"""The Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

SHORT = 500  # characters of headers whose choice is remembered


def choose(headers: tuple[str, ...], offers: tuple[str, ...]) -> str | None:
    """The offer that the client likes best, the earlier of equals; ``None`` if it accepts none of them.

    Without a header everything is welcome. What cannot be parsed is passed over.
    """
    return recall(headers, offers) if sum(map(len, headers)) <= SHORT else compare(headers, offers)


@functools.lru_cache(256)  # clients send the same few headers again and again
def recall(headers: tuple[str, ...], offers: tuple[str, ...]) -> str | None:
    return compare(headers, offers)


def compare(headers: tuple[str, ...], offers: tuple[str, ...]) -> str | None:
    ranges = [parsed for header in headers for part in header.split(",") if (parsed := parse(part)) is not None]
    if not ranges:
        return offers[0]
    weighed = [(weigh(offer, ranges), offer) for offer in offers]
    best = max(weight for weight, _ in weighed)
    return next(offer for weight, offer in weighed if weight == best) if best > 0 else None


def parse(part: str) -> tuple[str, float] | None:
    """One range with its weight: ``image/png;q=0.5`` → ("image/png", 0.5)."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    if "/" not in name:
        return None
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return None
            return None if math.isnan(weight) else (name, min(max(weight, 0.0), 1.0))
    return name, 1.0


def weigh(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that an offer falls into, 0 if there is none."""
    for pattern in (offer, offer.split("/")[0] + "/*", "*/*"):
        weights = [weight for name, weight in ranges if name == pattern]
        if weights:
            return max(weights)
    return 0.0
