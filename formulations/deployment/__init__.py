"""Deployments: one plan from demand to placed pods."""
