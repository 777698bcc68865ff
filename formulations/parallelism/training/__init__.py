"""Pieces of a training plan: layer strategies, sequence groups, rank mapping, schedules and uneven pipelines."""
