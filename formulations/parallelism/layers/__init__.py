"""Pipelines of layers over a pool of unequal devices, for most tokens/s."""
