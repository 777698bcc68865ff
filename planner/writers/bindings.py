"""Binding objects for the pods of a plan that are pending: `kubectl create --dry-run=server -f`, then without.

A Binding sets a pod's node as the scheduler does. It sets no device: shares of GPUs are the device plug-in's to give.
Source: k8s.io/api core/v1, Binding.
"""

from __future__ import annotations

import json

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import PodsDocument


def write(document: PodsDocument, path: str) -> None:
    """A v1 List, one Binding a pod in the order of the plan; ExportError where nothing is to be bound."""
    assert document.plan is not None
    moved = {move.pod for move in document.plan.moves}
    pods = [one for one in document.plan.placements if not one.running and one.pod not in moved]
    if not pods:
        raise ExportError("the plan places no pending pod: there is nothing to bind")
    items = []
    for one in pods:
        namespace, _, name = one.pod.partition("/")
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace},
                "target": {"apiVersion": "v1", "kind": "Node", "name": one.node},
            }
        )
    body = ",\n".join(f"    {json.dumps(item)}" for item in items)
    write_text(path, f'{{\n  "apiVersion": "v1",\n  "kind": "List",\n  "items": [\n{body}\n  ]\n}}\n')
