"""Training plans over unequal GPUs."""
