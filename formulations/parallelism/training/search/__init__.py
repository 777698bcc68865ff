"""The search over whole training plans."""
