"""Make instances of mixed GPU clusters: `python instances/pods/generate.py`. Sizes are made up; no trace is used.

Nodes are shapes that clouds sell; pods are shares of a GPU, single GPUs, halves of a node, whole nodes and pods without
GPUs, in proportions like those of shared research clusters.
"""

from __future__ import annotations

import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Name, cores, GiB, GPUs, model, share of nodes.
NODES = (
    ("a10", 32, 128, 1, "A10", 0.2),
    ("l4x4", 96, 384, 4, "L4", 0.3),
    ("a100x8", 96, 1152, 8, "A100", 0.3),
    ("h100x8", 192, 2048, 8, "H100", 0.2),
)
#: GPUs, milli of each, cores, GiB, share of the GPU demand.
PODS = (
    (1, 250, 3, 12, 0.06), (1, 330, 5, 14, 0.05), (1, 470, 6, 20, 0.08), (1, 640, 11, 28, 0.05), (1, 810, 7, 30, 0.06),
    (1, 1000, 8, 48, 0.2), (1, 1000, 15, 90, 0.1), (2, 1000, 20, 120, 0.1), (4, 1000, 46, 250, 0.1),
    (8, 1000, 90, 900, 0.2),
)  # fmt: skip
WITHOUT_GPU = ((2, 8), (7, 16), (16, 64))


def instance(name: str, objective: str, num_nodes: int, demand: float, seed: int) -> str:
    """YAML of a cluster with so many nodes and GPU demand as a share of its GPUs."""
    rng = random.Random(seed)
    counts = [max(1, round(num_nodes * share)) for *_, share in NODES]
    gpus = sum(count * node[3] for count, node in zip(counts, NODES, strict=True))
    lines = ["# made by generate.py", "problem: pods", f"name: {name}", f"objective: {objective}", "nodes:"]
    for (kind, cpu, memory, devices, model, _), count in zip(NODES, counts, strict=True):
        entry = f"name: {kind}, count: {count}, cpu: {cpu}, memory: {memory}Gi, gpus: {devices}, gpu_model: {model}"
        lines.append(f"  - {{{entry}}}")
    lines.append("pods:")
    for index, (devices, milli, cpu, memory, share) in enumerate(PODS):
        wanted = gpus * demand * share / (devices * milli / 1000)
        for priority, part in ((100, 0.6), (10, 0.4)):
            count = max(1, round(wanted * part * rng.uniform(0.8, 1.2)))
            entry = f"name: gpu{index}-p{priority}, count: {count}, cpu: {cpu}, memory: {memory}Gi, gpus: {devices}"
            lines.append(f"  - {{{entry}, gpu_milli: {milli}, priority: {priority}}}")
    for index, (cpu, memory) in enumerate(WITHOUT_GPU):
        count = max(1, round(num_nodes * rng.uniform(0.2, 0.5)))
        lines.append(f"  - {{name: cpu{index}, count: {count}, cpu: {cpu}, memory: {memory}Gi, priority: 100}}")
    return "\n".join(lines) + "\n"


def running(name: str, num_nodes: int, moves: int, seed: int) -> str:
    """YAML of a cluster in use: pods of 1, 2 and 4 GPUs stand where they came to stand, larger ones wait."""
    rng = random.Random(seed)
    lines = ["# made by generate.py", "problem: pods", f"name: {name}", "objective: allocation"]
    lines += [f"moves: {{allowed: true, max: {moves}}}", "nodes:"]
    lines += [f"  - {{name: n{node}, cpu: 96, memory: 1152Gi, gpus: 8, gpu_model: A100}}" for node in range(num_nodes)]
    lines.append("pods:")
    for node in range(num_nodes):
        left, index = rng.randint(3, 8), 0
        while left:
            devices = rng.choice([size for size in (1, 1, 1, 2, 4) if size <= left])
            entry = f"name: r{node}-{index}, cpu: {11 * devices}, memory: {rng.choice([40, 90])}Gi, gpus: {devices}"
            lines.append(f"  - {{{entry}, node: n{node}}}")
            left, index = left - devices, index + 1
    for devices, count in ((8, num_nodes // 6), (4, num_nodes // 6), (1, num_nodes // 4)):
        entry = f"name: wait{devices}, count: {count}, cpu: {11 * devices}, memory: {60 * devices}Gi, gpus: {devices}"
        lines.append(f"  - {{{entry}}}")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = running("running-40", num_nodes=40, moves=20, seed=7)
    (HERE / "running_40.yaml").write_text(text, encoding="utf-8")
    for name, objective, num_nodes, demand in (
        ("mixed_20", "priority", 20, 1.2),
        ("mixed_100", "allocation", 100, 1.3),
        ("mixed_50_consolidate", "consolidate", 50, 0.6),
    ):
        text = instance(name.replace("_", "-"), objective, num_nodes, demand, seed=7)
        (HERE / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
