"""Small pools and rings in few words, and oracles that try every plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations, product
from typing import Any

import numpy as np
from scipy.optimize import linprog

from formulations.base import solve
from formulations.outcome import Outcome, SolveOptions
from formulations.parallelism.layers.formulation import LAYERS
from formulations.parallelism.layers.problem import LayersProblem
from formulations.parallelism.layers.reading import read_problem as read_layers
from formulations.parallelism.windows.formulation import WINDOWS
from formulations.parallelism.windows.problem import WindowsProblem
from formulations.parallelism.windows.reading import read_problem as read_windows
from planner.cost.layers import pipeline_latency_s
from planner.descriptions.layers import EqualLayers, HomeDevice, LayersInstance, PoolDevices, Sites, WindowsInstance
from planner.layers_plan import LayersPlan, WindowsPlan

#: (name, count, memory, seconds a layer) and maybe (site, seconds of the head).
Device = tuple[Any, ...]


def pool(devices: Sequence[Device], num_layers: int, **more: Any) -> LayersInstance:
    """A pool of a model whose layers take 1 byte; memory_share is 1."""
    sizes = {name: more.pop(name) for name in list(more) if name in EqualLayers.model_fields}
    listed = tuple(
        PoolDevices(
            name=one[0],
            count=one[1],
            memory_bytes=float(one[2]),
            layer_s=float(one[3]),
            site=one[4] if len(one) > 4 else None,
            head_s=float(one[5]) if len(one) > 5 else None,
        )
        for one in devices
    )
    model = EqualLayers(num_layers=num_layers, layer_bytes=1.0, **sizes)
    return LayersInstance(name="pool", model=model, devices=listed, memory_share=1.0, **more)


def two_sites(bandwidth: float, latency_s: float = 0.0) -> Sites:
    """Sites a and b with equal links both ways."""
    return Sites(
        names=("a", "b"),
        bandwidth_bytes_per_s=((None, bandwidth), (bandwidth, None)),
        latency_s=((None, latency_s), (latency_s, None)),
    )


def problem_of(instance: LayersInstance) -> LayersProblem:
    """Its arrays."""
    return read_layers(instance)


def answer(instance: LayersInstance, method: str = "highs", **limits: Any) -> Outcome[LayersPlan]:
    """The solved pool."""
    return solve(LAYERS, read_layers(instance), SolveOptions(method=method, **limits))


def ring(devices: Sequence[HomeDevice], num_layers: int, **more: Any) -> WindowsInstance:
    """Home devices of a model whose layers take 1 byte."""
    return WindowsInstance(name="ring", num_layers=num_layers, layer_bytes=1.0, devices=tuple(devices), **more)


def home(name: str, ram: float, cpu: float, *, gpu: tuple[float, float] | None = None, **more: Any) -> HomeDevice:
    """RAM in layers, CPU and (layers, seconds) of a GPU; the disk reads a layer a second unless told."""
    memory, layer_s = (0.0, None) if gpu is None else gpu
    speed = float(more.pop("disk", 1.0))
    return HomeDevice(
        name=name,
        ram_bytes=float(ram),
        cpu_layer_s=float(cpu),
        gpu_memory_bytes=float(memory),
        gpu_layer_s=layer_s,
        disk_bytes_per_s=speed,
        **more,
    )


def answer_ring(instance: WindowsInstance, method: str = "highs", **limits: Any) -> Outcome[WindowsPlan]:
    """The solved ring."""
    return solve(WINDOWS, read_windows(instance), SolveOptions(method=method, **limits))


def best_rate(problem: LayersProblem) -> float:
    """Most steps/s over every way to put devices into ordered pipelines, every cut and every slot; 0 for none."""
    devices = np.repeat(np.arange(problem.num_classes), problem.count).tolist()
    options: dict[frozenset[int], list[tuple[tuple[int, ...], float]]] = {}
    for size in range(1, len(devices) + 1):
        for order in permutations(range(len(devices)), size):
            slot = _best_slot(problem, [devices[i] for i in order])
            if slot is not None:
                options.setdefault(frozenset(order), []).append((order, slot))
    best = 0.0
    for sets in _disjoint(list(options), frozenset()):
        for chosen in product(*(_distinct(problem, devices, options[one]) for one in sets)):
            best = max(best, _shared_rate(problem, [(path, slot) for path, slot in chosen]))
    return best


def _distinct(
    problem: LayersProblem, devices: Sequence[int], ways: Sequence[tuple[tuple[int, ...], float]]
) -> list[tuple[tuple[int, ...], float]]:
    """The shortest slot of each path of sites."""
    found: dict[tuple[int, ...], float] = {}
    for order, slot in ways:
        sites = [int(problem.site[devices[i]]) for i in order]
        path = tuple(site for place, site in enumerate(sites) if place == 0 or sites[place - 1] != site)
        found[path] = min(slot, found.get(path, np.inf))
    return list(found.items())


def _disjoint(sets: Sequence[frozenset[int]], used: frozenset[int]) -> Iterator[list[frozenset[int]]]:
    yield []
    for place, one in enumerate(sets):
        if not one & used:
            for rest in _disjoint(sets[place + 1 :], used | one):
                yield [one, *rest]


def _best_slot(problem: LayersProblem, groups: Sequence[int]) -> float | None:
    """The shortest allowed slot of devices in this order, over all cuts."""
    sites = [int(problem.site[g]) for g in groups]
    changes = [site for place, site in enumerate(sites) if place == 0 or sites[place - 1] != site]
    if len(set(changes)) < len(changes):
        return None
    best: float | None = None
    last = len(groups) - 1
    for cuts in combinations(range(1, problem.num_layers), last):
        layers = [b - a for a, b in pairwise((0, *cuts, problem.num_layers))]
        ends = [(1 if place == 0 else 0) + (2 if place == last else 0) for place in range(last + 1)]
        if any(n > problem.cap[g, e] for n, g, e in zip(layers, groups, ends, strict=True)):
            continue
        times = [n * problem.layer_s[g] for n, g in zip(layers, groups, strict=True)]
        times[-1] += problem.head_s[groups[-1]]
        for slot in problem.slots().tolist():
            if slot < max(times) * (1 - 1e-9) or (best is not None and slot >= best):
                continue
            latency = pipeline_latency_s(slot, sites, problem.hops)
            limit = min(problem.max_latency_s, problem.in_flight * slot) * (1 + 1e-9)
            if np.isfinite(latency) and latency <= limit:
                best = slot
    return best


def _shared_rate(problem: LayersProblem, chosen: Sequence[tuple[tuple[int, ...], float]]) -> float:
    """Most steps/s of some pipelines over the links that they share."""
    if not chosen:
        return 0.0
    size = problem.num_sites
    links = [(a, b) for a in range(size) for b in range(size) if a != b and np.isfinite(problem.hops.steps_per_s[a, b])]
    uses = [[list(pairwise(path)).count(link) for path, _ in chosen] for link in links]
    solved = linprog(
        -np.ones(len(chosen)),
        A_ub=np.array(uses, dtype=float) if links else None,
        b_ub=[problem.hops.steps_per_s[link] for link in links] if links else None,
        bounds=[(0.0, 1.0 / slot) for _, slot in chosen],
    )
    return float(-solved.fun)


def best_token_s(problem: WindowsProblem) -> float:
    """The fastest token over all windows and all splits between CPU and GPU."""
    best = np.inf
    n, window = problem.num_devices, problem.window
    for cuts in combinations(range(window + n - 1), n - 1):
        layers = np.array([b - a - 1 for a, b in pairwise((-1, *cuts, window + n - 1))], dtype=np.int64)
        if problem.every_device and (layers == 0).any():
            continue
        most = np.minimum(layers, problem.gpu_layers)
        for on_gpu in product(*(range(one + 1) for one in most.tolist())):
            best = min(best, problem.times(layers, np.array(on_gpu, dtype=np.int64)).token_s)
    return best
