"""Finds the benchmark by its name: ``bench/NAME.py`` with ``main(argv) -> int``."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench


def names() -> list[str]:
    hidden = {"__main__", "crowd", "fitting", "load", "storm", "litserve_peer", "raw"}
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.ispkg and module.name not in hidden)


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in names():
        print(f"usage: python -m bench {{{','.join(names())}}} [options]", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"bench.{argv[0]}").main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
