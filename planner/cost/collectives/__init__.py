"""Time of collectives: inside a scale-up domain, between nodes, and of expert dispatch and combine."""

from planner.cost.collectives.dispatch import combine_seconds, dispatch_seconds, exchange_seconds
from planner.cost.collectives.inter_node import InterNodeLink, hierarchical_seconds
from planner.cost.collectives.links import CollectiveLink, collective_seconds, link_for

__all__ = [
    "CollectiveLink",
    "InterNodeLink",
    "collective_seconds",
    "combine_seconds",
    "dispatch_seconds",
    "exchange_seconds",
    "hierarchical_seconds",
    "link_for",
]
