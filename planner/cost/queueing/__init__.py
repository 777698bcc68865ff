"""Requests in time: an iteration-level simulation, and closed forms that are tested against it."""
