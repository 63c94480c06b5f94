"""What a server tells of itself at ``/metrics``, once all of its processes have told what they know."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from api.telemetry import PERIOD


def read_numbers(url: str, model: str) -> Mapping[str, float]:
    """A model's numbers: sums, counts and totals by their names in Prometheus' format."""
    time.sleep(2 * PERIOD + 0.2)  # a process adds what it has seen after each period
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {one.name: one.value for family in families for one in family.samples if one.labels == {"model": model}}
