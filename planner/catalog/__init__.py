"""Facts about models, devices, links and node shapes, each with its source; read when first asked for."""

from planner.catalog.devices import device, device_names, link, link_names, node, node_names
from planner.catalog.models import model, model_names

__all__ = ["device", "device_names", "link", "link_names", "model", "model_names", "node", "node_names"]
