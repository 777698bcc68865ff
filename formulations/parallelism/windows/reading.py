"""From a `windows` instance to the arrays."""

from __future__ import annotations

import hashlib

import numpy as np

from formulations.parallelism.windows.problem import WindowsProblem
from planner.descriptions.layers import WindowsInstance
from planner.files import SourceText, canonical_json


def read_problem(instance: WindowsInstance, source: SourceText | None = None) -> WindowsProblem:
    """The arrays; the description has said all that can be wrong."""
    devices = instance.devices
    room = np.array([one.gpu_memory_bytes for one in devices]) / (instance.rounds * instance.layer_bytes)
    said = canonical_json(instance.model_dump(mode="json", exclude_defaults=True))
    return WindowsProblem(
        name=instance.name,
        sha256=hashlib.sha256(said.encode()).hexdigest(),
        names=tuple(one.name for one in devices),
        num_layers=instance.num_layers,
        layer_bytes=instance.layer_bytes,
        rounds=instance.rounds,
        every_device=instance.every_device,
        cpu_layer_s=np.array([one.cpu_layer_s for one in devices]),
        gpu_layer_s=np.array([one.gpu_layer_s or 0.0 for one in devices]),
        ram_bytes=np.array([one.ram_bytes for one in devices]),
        # A layer that fits exactly is not lost to rounding.
        gpu_layers=np.minimum(np.floor(room * (1 + 1e-12)), instance.num_layers).astype(np.int64),
        disk_bytes_per_s=np.array([one.disk_bytes_per_s for one in devices]),
        hop_s=np.array([one.hop_s for one in devices]),
        reloads_all=np.array([one.reload == "all" for one in devices]),
    )
