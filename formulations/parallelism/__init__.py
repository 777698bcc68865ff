"""Parallelism plan search: which workers, and how many of each."""
