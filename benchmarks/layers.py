"""Layers over unequal devices: `python -m benchmarks.layers [--short] [--json] [--case NAME]`.

Pools: 21 random sets of GPUs with the answers of Parallax's own allocators and, for 15, of another exact search.
Homes: 30 sets of home devices with the answers of Halda's iteration and of another one-shot search.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import Row, data_folder, main
from formulations import SolveOptions, plan
from planner.descriptions.layers import EqualLayers, HomeDevice, LayersInstance, PoolDevices, WindowsInstance
from planner.plan import PlanDocument

#: The model of the pools: Llama 3 70B in bf16. Source: the stored file's `model`; sizes from its config.json.
LAYERS, HIDDEN, FFN, KV, VOCAB = 80, 8192, 28672, 1024, 128256
LAYER_BYTES = 2.0 * (2 * HIDDEN**2 + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)
EMBEDDING_BYTES = 2.0 * VOCAB * HIDDEN
#: Share of memory that Parallax gives to weights; the rest is for caches. Source: the stored file.
WEIGHTS_SHARE = 0.65
GIB, GB = 2.0**30, 1e9
#: Sizes of random pools that are far too large to list.
LARGE = (64, 128, 256)


def stored_pool(kinds: Mapping[str, Sequence[float]], names: Iterable[str]) -> LayersInstance:
    """A pool of named GPUs, kinds as [GiB, TFLOP/s, ...]. A token a second for each TFLOP/s and layer, as stored."""
    counts = Counter(names)
    devices = tuple(
        PoolDevices(name=name, count=count, memory_bytes=kinds[name][0] * GIB, layer_s=1.0 / kinds[name][1])
        for name, count in sorted(counts.items())
    )
    model = EqualLayers(
        num_layers=LAYERS, layer_bytes=LAYER_BYTES, embedding_bytes=EMBEDDING_BYTES, head_bytes=EMBEDDING_BYTES
    )
    return LayersInstance(name="pool", model=model, memory_share=WEIGHTS_SHARE, devices=devices)


def stored_home(case: Mapping[str, Any], every_device: bool) -> WindowsInstance:
    """A stored ring: times in ms, sizes in GB, disks in GB/ms; a GPU's time is told as a difference to the CPU's."""
    devices = []
    for place, has_gpu in enumerate(case["gpu"]):
        cpu_ms = case["alpha_cpu_ms"][place]
        devices.append(
            HomeDevice(
                name=f"device {place}",
                ram_bytes=case["ram_gb"][place] * GB,
                cpu_layer_s=cpu_ms / 1e3,
                gpu_memory_bytes=case["vram_gb"][place] * GB if has_gpu else 0.0,
                gpu_layer_s=(cpu_ms + case["beta_gpu_ms"][place]) / 1e3 if has_gpu else None,
                disk_bytes_per_s=case["disk_gb_per_ms"][place] * GB * 1e3,
            )
        )
    return WindowsInstance(
        name="home",
        num_layers=case["layers"],
        layer_bytes=case["layer_gb"] * GB,
        devices=tuple(devices),
        every_device=every_device,
    )


def pools(short: bool) -> Iterator[Row]:
    """Tokens/s of each stored pool against the better of Parallax's answers and against the other exact search."""
    data = json.loads((data_folder("training") / "parallax_allocation.json").read_text())
    gains, gaps, cpu = [], [], []
    proven = below = 0
    for number, row in enumerate(data["rows"][: 15 if short else None]):
        document, cpu_s = timed(
            lambda row=row: plan(stored_pool(data["gpus_mem_tflops_bw"], row["names"]), options=LIMITS)
        )
        ours = rate(document)
        theirs = max(found["thr"] for found in (row["greedy"], row.get("dp", row["greedy"])) if found["ok"])
        gains.append(ours / theirs)
        gaps.append(document.outcome.gap or 0.0)
        cpu.append(cpu_s)
        proven += document.outcome.status == "optimal"
        case = f"pool {number + 1:2}, {row['n']} GPUs"
        yield Row(case, "tokens/s", ours, theirs, "Parallax, its better answer", "1/s", "higher")
        exact = row["milp_reference"]
        if exact is not None:
            below += ours < exact["thr"] * (1 - 1e-6)
            yield Row(case, "tokens/s", ours, exact["thr"], "stored MILP", "1/s", "higher")
    total = f"all {len(gains)} pools"
    yield Row(total, "ours / Parallax, geometric mean", geomean(gains), 1.0, "Parallax", "ratio", "higher")
    yield Row(total, "ours / Parallax, least", min(gains), 1.0, "Parallax", "ratio", "higher")
    yield Row(total, "ours / Parallax, most", max(gains), 1.0, "Parallax", "ratio", "higher")
    yield Row(
        total,
        "below a stored answer",
        float(below + sum(gain < 1 - 1e-9 for gain in gains)),
        0.0,
        "none",
        "count",
        "lower",
    )
    yield Row(total, "proven optimal", float(proven), float(len(gains)), "all", "count", "higher")
    yield Row(total, "largest gap", max(gaps), 0.0, "proof", "ratio", "lower")
    yield Row(total, "CPU of one pool, mean", sum(cpu) / len(cpu), None, "", "s", "lower")
    yield Row(total, "CPU of one pool, most", max(cpu), None, "", "s", "lower")


def homes(short: bool) -> Iterator[Row]:
    """Milliseconds a token of each stored ring, with every device as Halda has it, and with those that help."""
    cases = json.loads((data_folder("training") / "halda_cases.json").read_text())
    rule, one_shot, fewer, cpu = [], [], [], []
    proven = 0
    for number, case in enumerate(cases):
        document, cpu_s = timed(lambda case=case: plan(stored_home(case, True), options=LIMITS))
        free = plan(stored_home(case, False), options=LIMITS)
        assert document.outcome.objective is not None
        assert free.outcome.objective is not None
        ours = 1e3 * document.outcome.objective
        rule.append(case["fixed_point_ms"] / ours)
        one_shot.append(case["one_shot_ms"] / ours)
        fewer.append(document.outcome.objective / free.outcome.objective)
        cpu.append(cpu_s)
        proven += document.outcome.status == "optimal"
        if not short:
            name = f"home {number + 1:2}, {len(case['gpu'])} devices"
            yield Row(name, "a token", ours, case["fixed_point_ms"], "Halda's iteration", "ms", "lower")
    total = f"all {len(cases)} homes"
    yield Row(total, "Halda / ours, geometric mean", geomean(rule), 1.0, "Halda's iteration", "ratio", "higher")
    yield Row(total, "Halda / ours, most", max(rule), 1.0, "Halda's iteration", "ratio", "higher")
    yield Row(total, "Halda / ours, least", min(rule), 1.0, "Halda's iteration", "ratio", "higher")
    yield Row(total, "stored one-shot / ours, least", min(one_shot), 1.0, "stored MILP", "ratio", "higher")
    yield Row(total, "every device / those that help", geomean(fewer), 1.0, "every device", "ratio", "higher")
    yield Row(total, "proven optimal", float(proven), float(len(cases)), "all", "count", "higher")
    yield Row(total, "CPU of one home, mean", sum(cpu) / len(cpu), None, "", "s", "lower")


def scale(short: bool) -> Iterator[Row]:
    """Random pools of the eight stored kinds: gap and CPU as devices are added; 30 s each."""
    kinds = json.loads((data_folder("training") / "parallax_allocation.json").read_text())["gpus_mem_tflops_bw"]
    for size in LARGE[: 1 if short else None]:
        draw = random.Random(size)
        names = [draw.choice(sorted(kinds)) for _ in range(size)]
        document, cpu_s = timed(
            lambda names=names: plan(stored_pool(kinds, names), options=SolveOptions(time_limit_s=30.0))
        )
        case = f"random pool, {size} GPUs"
        assert document.baseline is not None
        yield Row(case, "tokens/s", rate(document), -document.baseline.objective, "Parallax's greedy", "1/s", "higher")
        yield Row(case, "gap", document.outcome.gap or 0.0, 0.0, "proof", "ratio", "lower")
        yield Row(case, "CPU", cpu_s, None, "", "s", "lower")


#: Of one solve: far more than the stored cases take.
LIMITS = SolveOptions(time_limit_s=120.0)


def rate(document: PlanDocument) -> float:
    """Tokens/s of a plan."""
    assert document.outcome.objective is not None
    return -document.outcome.objective


def timed(solve: Callable[[], PlanDocument]) -> tuple[PlanDocument, float]:
    """A plan and the CPU time that it took, seconds."""
    started_s = time.process_time()
    document = solve()
    return document, time.process_time() - started_s


def geomean(values: Sequence[float]) -> float:
    """Of positive ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


if __name__ == "__main__":
    main("layers", {"pools": pools, "homes": homes, "scale": scale})
