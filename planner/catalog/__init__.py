"""Facts about models, devices and links, each with its source; read when first asked for."""

from planner.catalog.models import model, model_names

__all__ = ["model", "model_names"]
