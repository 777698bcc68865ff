"""The step time of Metis's own estimator, and its stored plans: what `benchmarks.training` prices both by."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training import uneven_stages


def in_proportion(batch: int, speed: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Its data balancer: whole parts in proportion to speed, what is left to the largest remainders."""
    share = batch * speed / speed.sum()
    size = share.astype(np.int64)
    size[np.argsort(-(share - size), kind="stable")[: batch - size.sum()]] += 1
    return size


def metis_plans(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(ms, plan ...) of the stored answers, as printed: rank, ms, types, groups, strategies, micro-batches, cuts."""
    pattern = r"\d+, ([\d.]+), \((.*)\), (\[[\d, ]*\]), (\[\(.*?\)\]), (\d+), (\[.*\])"
    found = []
    for line in data["metis_top20"]:
        match = re.match(pattern, line)
        assert match is not None
        types = [name.upper() for name in re.findall(r"'(\w+)'", match[2])]
        groups, strategies, cuts = (ast.literal_eval(match[n]) for n in (3, 4, 6))
        found.append((float(match[1]), types, groups, strategies, int(match[5]), cuts))
    return found


class MetisEstimator:
    """Step time as Metis's HeteroCostEstimator has it (SamsungLabs/Metis, model/cost_estimator.py).

    Its bandwidth between nodes returns that inside a node, and its optimizer time is that of the profile it read first.
    """

    #: The profile whose optimizer and batch generator times reproduce the stored costs.
    FIRST = ("A100", 2, 2)
    #: GPUs and memory of each type, bandwidth of the case in bytes / ms.
    GPUS, MEMORY_GIB, SPEED = {"T4": 4, "A100": 12}, {"T4": 15, "A100": 80}, 46 * 1024.0**2

    def __init__(self, data: dict[str, Any]) -> None:
        self.args = data["args"]
        self.profiles = {}
        for name, profile in data["profiles"].items():
            match = re.fullmatch(r"DeviceType\.(\w+)_tp(\d+)_bs(\d+)\.json", name)
            assert match is not None
            self.profiles[match[1], int(match[2]), int(match[3])] = profile
        first = self.profiles[self.FIRST]
        self.update_ms = 2 * first["execution_time"]["optimizer_time_ms"]
        self.batch_ms = first["execution_time"]["batch_generator_time_ms"]
        self.parameter_bytes = np.array(first["model"]["parameters"]["parameters_per_layer_bytes"], dtype=np.float64)
        self.parameter_bytes[1:-1] = self.parameter_bytes[1]

    def layer_ms(self, device: str, tp: int, size: int) -> npt.NDArray[np.float64]:
        """Profiled time of each layer, [L]."""
        return np.array(self.profiles[device, tp, size]["execution_time"]["layer_compute_total_ms"])

    def host_ms(self, device: str, tp: int, size: int) -> float:
        """What a micro-batch takes beside its layers."""
        whole = self.profiles[device, tp, size]["execution_time"]["forward_backward_time_ms"]
        return float(whole - self.layer_ms(device, tp, size).sum())

    def send_ms(self, done: int, tp: int, size: int) -> float:
        """One micro-batch's activations after so many layers."""
        args = self.args
        wide = args["vocab"] / tp if done == args["num_layers"] - 1 else args["hidden"]
        return float(size * args["seq"] * wide / self.SPEED)

    def step_ms(self, order: Any, groups: Any, strategies: Any, micro: int, cuts: Any) -> float:
        """Its price of a plan; mixed stages split the batch by speed."""
        types = [kind for kind in order for _ in range(self.GPUS[kind])]
        ends = np.cumsum(groups)
        worked, sent, reduced, updated, host = [], 0.0, [], [], 0.0
        for i, (group, (dp, tp)) in enumerate(zip(groups, strategies, strict=True)):
            own = types[ends[i] - group : ends[i]]
            size, run = self.args["gbs"] // dp // micro, slice(cuts[i], cuts[i + 1])
            worked.append(max(self._replica_ms(own, dp, tp, micro, run)))
            if i + 1 < len(groups):
                sent += self.send_ms(cuts[i + 1], tp, size)
            else:
                host = micro * max(self.host_ms(kind, tp, size) for kind in set(own))
            reduced.append(2 * (dp - 1) / dp / self.SPEED * self.parameter_bytes[run].sum() / tp)
            updated.append(self.update_ms / tp * (cuts[i + 1] - cuts[i]) / self.args["num_layers"])
        through = (micro - 1) * max(worked) + sum(worked)
        return float(through + host + max(updated) + max(reduced) + sent + self.batch_ms * micro)

    def _replica_ms(self, own: list[str], dp: int, tp: int, micro: int, run: slice) -> list[float]:
        batch = self.args["gbs"] // micro
        kinds = [own[len(own) // dp * i] for i in range(dp)]
        if len(set(own)) == 1:
            return [float(self.layer_ms(own[0], tp, batch // dp)[run].sum())]
        size = in_proportion(batch, np.array([1.0 / self.layer_ms(kind, tp, 1).sum() for kind in kinds]))
        # A batch is priced as the powers of two that make it up.
        return [
            sum(
                float(self.layer_ms(kind, tp, 1 << bit)[run].sum())
                for bit in range(int(n).bit_length())
                if n >> bit & 1
            )
            for kind, n in zip(kinds, size, strict=True)
        ]

    def problem(self, order: Sequence[str], micro: int) -> tuple[list[tuple[str, int, int]], Any]:
        """(device, dp, tp) of every option of one type, and the problem; nothing where no profile fits."""
        types = [kind for kind in order for _ in range(self.GPUS[kind])]
        layers, names, rows = self.args["num_layers"], [], []
        for begin, end, tp in product(range(len(types)), range(1, len(types) + 1), (1, 2, 4)):
            dp = (end - begin) // tp
            if end <= begin or (end - begin) % tp or self.args["gbs"] % (micro * dp) or len(set(types[begin:end])) > 1:
                continue
            kind, size = types[begin], self.args["gbs"] // (micro * dp)
            if (kind, tp, size) not in self.profiles:
                continue
            names.append((kind, dp, tp))
            reduce_ms = 2 * (dp - 1) / dp / self.SPEED * self.parameter_bytes / tp
            rows.append(
                (
                    begin,
                    end,
                    self.layer_ms(kind, tp, size),
                    np.array(self.profiles[kind, tp, size]["execution_memory"]["layer_memory_total_mb"]) * 1024.0**2,
                    reduce_ms + self.update_ms / tp / layers,
                    np.array([self.send_ms(done, tp, size) for done in range(layers + 1)]),
                    self.MEMORY_GIB[kind] * 1024.0**3,
                    micro * (self.host_ms(kind, tp, size) + self.batch_ms),
                )
            )
        if not rows:
            return [], None
        begins, ends, layer_ms, size_bytes, sync_ms, send_ms, room, closing_ms = map(np.array, zip(*rows, strict=True))
        return names, uneven_stages.UnevenProblem(
            begin=begins,
            end=ends,
            layer_s=layer_ms / 1e3,
            layer_bytes=size_bytes,
            kept_bytes=np.zeros_like(size_bytes),
            sync_s=sync_ms / 1e3,
            send_s=send_ms / 1e3,
            capacity_bytes=room,
            closing_s=closing_ms / 1e3,
            micro_batches=micro,
        )
