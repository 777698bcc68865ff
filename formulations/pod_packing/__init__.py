"""Pods onto nodes, to the device: proven and at scale."""
