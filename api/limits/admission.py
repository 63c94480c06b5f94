"""What an admitted request holds, and the header fields that tell clients where they stand."""

from __future__ import annotations

import math

from api.conf import LimitConf
from api.limits.base import Place, State

CONCURRENT = 'qu="concurrent-requests"'


class Admission:
    """The right to compute, until the context that gave it ends."""

    def __init__(self, conf: LimitConf, place: Place | None = None) -> None:
        self.conf, self.place = conf, place
        self.refunded = False

    async def refund(self) -> None:
        """Takes the request out of the client's quota, in effect when the admission ends. Twice is once."""
        self.refunded = True

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit``; empty when no limit is on."""
        return headers(self.conf, self.place, self.refunded) if self.place else {}


def headers(conf: LimitConf, place: Place, refunded: bool = False) -> dict[str, str]:
    """The two fields of draft-ietf-httpapi-ratelimit-headers-10: Lists of Strings (RFC 9651) with Integer parameters.

    ``q`` quota, ``w`` window, ``qu`` unit; ``r`` remaining, ``t`` seconds until some of the quota comes back. Policies: "default" is
    the rate, "client" the one request at a time, "server" the capacity that all clients share.
    """
    policies, limits = [], []
    if conf.rate.enabled:
        remaining = max(0, conf.rate.max_request - place.used + refunded)
        policies.append(f'"default";q={conf.rate.max_request};w={math.ceil(conf.rate.window)}')
        limits.append(f'"default";r={remaining};t={math.ceil(place.reset)}')
    if conf.block.enabled:
        policies.append(f'"client";q=1;{CONCURRENT}')
        if place.state is not State.OVER_RATE:  # which is refused before anybody looks whether the client is at work
            limits.append(f'"client";r={int(place.state is State.OVER_QUEUE)}')
    if conf.concurrency.enabled:
        most = conf.concurrency.max_concurrency
        policies.append(f'"server";q={most};{CONCURRENT}')
        limits.append(f'"server";r={max(0, most - place.working)}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)} if policies else {}
