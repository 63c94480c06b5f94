"""Benchmarks: ``python -m bench NAME``. Each measures ratios inside one run and prints a table for docs/performance.md."""
