"""Fits of the operator tables in the catalogue: `python -m benchmarks.refit TOPIC [--write]`."""
