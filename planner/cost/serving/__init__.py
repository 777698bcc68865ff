"""Predictions for one serving worker: time per token, time to first token, memory and admitted sequences."""
