"""A ring of home devices as arrays.

Sets    i in devices, in ring order
Data    L layers of b bytes; k rounds, each device has the same window in each
        cpu_s[i], gpu_s[i]   time of a layer; ram[i] bytes for weights; v[i] layers that the GPU holds
        disk[i], hop[i]      bytes/s; seconds to the next device
        all[i]               once RAM is short, all of the CPU's layers are read anew, not only what is too much
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from planner.cost.layers import HomeTimes, home_times
from planner.layers_plan import LayerWindow, WindowsPlan
from planner.workload import read_only_fields

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowsProblem:
    """Everything the search may know; arrays [devices] are read-only.

    gpu_layers : layers that the GPU holds in each round, most.
    """

    kind: ClassVar[str] = "windows"

    name: str
    sha256: str
    names: tuple[str, ...]
    num_layers: int
    layer_bytes: float
    rounds: int
    every_device: bool
    cpu_layer_s: FloatArray
    gpu_layer_s: FloatArray
    ram_bytes: FloatArray
    gpu_layers: IntArray
    disk_bytes_per_s: FloatArray
    hop_s: FloatArray
    reloads_all: BoolArray

    def __post_init__(self) -> None:
        read_only_fields(self)

    @property
    def window(self) -> int:
        """Layers of a round."""
        return self.num_layers // self.rounds

    @property
    def num_devices(self) -> int:
        """Devices of the ring."""
        return len(self.names)

    def times(self, layers: IntArray, gpu_layers: IntArray) -> HomeTimes:
        """The cost model's times of these windows."""
        return home_times(
            layers,
            gpu_layers,
            self.rounds,
            layer_bytes=self.layer_bytes,
            cpu_layer_s=self.cpu_layer_s,
            gpu_layer_s=self.gpu_layer_s,
            ram_bytes=self.ram_bytes,
            disk_bytes_per_s=self.disk_bytes_per_s,
            hop_s=self.hop_s,
            reloads_all=self.reloads_all,
        )

    def plan_of(self, layers: IntArray, gpu_layers: IntArray) -> WindowsPlan:
        """The plan that these windows are."""
        times = self.times(layers, gpu_layers)
        windows = tuple(
            LayerWindow(
                device=self.names[i],
                num_layers=int(layers[i]),
                gpu_layers=int(gpu_layers[i]),
                resident_bytes=float(times.resident_bytes[i]),
                reloaded_bytes=float(times.reloaded_bytes[i]),
                compute_s=float(times.compute_s[i]),
                disk_s=float(times.disk_s[i]),
                hop_s=float(times.hop_s[i]),
            )
            for i in np.flatnonzero(layers).tolist()
        )
        return WindowsPlan(num_layers=self.num_layers, rounds=self.rounds, token_s=times.token_s, windows=windows)

    def arrays_of(self, plan: WindowsPlan) -> tuple[IntArray, IntArray]:
        """Layers and GPU layers of a plan by device; KeyError for a device that is not in the ring."""
        index = {name: i for i, name in enumerate(self.names)}
        layers = np.zeros(self.num_devices, dtype=np.int64)
        on_gpu = np.zeros(self.num_devices, dtype=np.int64)
        for one in plan.windows:
            layers[index[one.device]] += one.num_layers
            on_gpu[index[one.device]] += one.gpu_layers
        return layers, on_gpu
