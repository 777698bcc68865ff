"""Sequences of different lengths over sequence-parallel groups of different sizes."""
