"""Measurements of what the design promises: ``python -P -m benchmarks [group ...]``. See README.md."""
