"""Measured quality and speed, printed as tables: `python -m benchmarks.TOPIC [--short] [--json]`. Never asserted."""
