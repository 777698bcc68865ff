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


#: A shared cluster: name, cores, GiB, GPUs, model, share of nodes; pools of nodes and their shares; zones.
SHAPES = (
    ("cpu", 64, 256, 0, "", 0.1), ("a10", 32, 128, 1, "A10", 0.15), ("l4x4", 96, 384, 4, "L4", 0.25),
    ("l40sx8", 128, 1024, 8, "L40S", 0.15), ("a100x8", 96, 1152, 8, "A100", 0.2),
    ("h100x8", 192, 2048, 8, "H100", 0.15),
)  # fmt: skip
POOLS = (("general", 0.6), ("training", 0.25), ("serving", 0.15))
ZONES = ("a", "b", "c")
#: GPUs of a pod class and how often; thousandths that shares come in; cores and GiB for each whole GPU.
SIZES = ((0, 10), (0.5, 35), (1, 30), (2, 10), (4, 10), (8, 5))
SHARES = (110, 160, 220, 230, 250, 320, 330, 400, 460, 470, 500, 550, 650, 700, 810)
CORES, GIB = (2, 4, 6, 8, 10, 11, 12, 14, 16, 20), (16, 32, 48, 64, 90, 120)
#: Share of classes with a selector, of those that tolerate a pool's taint, of those kept apart by anti-affinity.
SELECTING, TOLERANT, APART = 0.4, 0.6, 0.3
SPREADING, NODES_A_GANG, DEMAND = 15, 250, 1.3


def shared(name: str, num_nodes: int, num_pods: int, num_classes: int, seed: int, *, apart: bool = False) -> str:
    """YAML of a cluster of tainted pools in three zones, with selectors, tolerations, topology spread and gangs.

    GPU demand is about 130 % of what there is. apart : some classes run at most one pod a node (anti-affinity).
    """
    rng, gangs = random.Random(seed), max(3, num_nodes // NODES_A_GANG)
    lines = ["# made by generate.py", "problem: pods", f"name: {name}", "objective: allocation", "nodes:"]
    gpus = 0
    for shape, cpu, memory, devices, model, share in SHAPES:
        for pool, part in POOLS:
            for zone in ZONES:
                count = max(1, round(num_nodes * share * part / len(ZONES)))
                gpus += count * devices
                entry = f"name: {shape}-{pool}-{zone}, count: {count}, cpu: {cpu}, memory: {memory}Gi"
                entry += f", gpus: {devices}, gpu_model: {model}" if devices else ""
                entry += f", labels: {{zone: {zone}, pool: {pool}}}"
                if pool != "general":
                    entry += f", taints: [{{key: dedicated, value: {pool}, effect: NoSchedule}}]"
                lines.append(f"  - {{{entry}}}")
    lines.append("pods:")
    kinds, weights = zip(*SIZES, strict=True)
    drawn = [(rng.choices(kinds, weights)[0], rng.paretovariate(1.2)) for _ in range(num_classes - gangs)]
    # Small pods and whole GPUs are scaled apart, so that both the pods and the GPUs asked come out right.
    small, large = ([one for one in drawn if (one[0] >= 1) is whole] for whole in (False, True))
    small_pods, large_pods = (sum(weight for _, weight in part) for part in (small, large))
    small_gpus, large_gpus = (sum(size * weight for size, weight in part) for part in (small, large))
    each_small, each_large = 0.9 * small_gpus / small_pods, large_gpus / large_pods
    many = max(1.0, (DEMAND * gpus - each_small * num_pods) / (each_large - each_small))
    for index, (size, weight) in enumerate(drawn):
        count = max(1, round(weight * (many / large_pods if size >= 1 else (num_pods - many) / small_pods)))
        lines.append(f"  - {{{_shared_pod(rng, f'job{index}', size, count, index < SPREADING, apart)}}}")
    for index in range(gangs):
        size, count = rng.choice((4, 8, 8)), rng.choice((2, 4, 8))
        entry = f"name: gang{index}, count: {count}, gang: gang{index}, cpu: {11 * size}, memory: {90 * size}Gi"
        lines.append(f"  - {{{entry}, gpus: {size}, tolerations: [{{key: dedicated, value: training}}]}}")
    return "\n".join(lines) + "\n"


def _shared_pod(rng: random.Random, name: str, size: float, count: int, spreads: bool, apart: bool) -> str:
    devices = 1 if 0 < size < 1 else int(size)
    milli = rng.choice(SHARES) if 0 < size < 1 else 1000
    part = max(1.0, devices) * (milli / 1000 if devices else 0.5)
    cpu, memory = max(1, round(rng.choice(CORES) * part)), max(1, round(rng.choice(GIB) * part))
    entry = f"name: {name}, count: {count}, cpu: {cpu}, memory: {memory}Gi"
    if devices:
        entry += f", gpus: {devices}" + (f", gpu_milli: {milli}" if milli < 1000 else "")
    if rng.random() < TOLERANT:
        pool = rng.choice(("training", "serving"))
        entry += f", tolerations: [{{key: dedicated, value: {pool}}}]"
    if not spreads and rng.random() < SELECTING:
        chosen = rng.choice(("zone", "pool", "model"))
        if chosen == "model" and devices:
            models = ["L40S", "A100", "H100"] if devices > 4 else ["L4", "L40S", "A100", "H100"]
            entry += f", gpu_models: [{', '.join(sorted(rng.sample(models, 2)))}]"
        else:
            entry += f", node_selector: {{{'pool: general' if chosen == 'pool' else f'zone: {rng.choice(ZONES)}'}}}"
    if spreads:
        rule = "{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, "
        rule += f"labelSelector: {{matchLabels: {{app: {name}}}}}}}"
        entry += f", labels: {{app: {name}}}, topology_spread: [{rule}]"
    elif apart and rng.random() < APART:
        term = f"{{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {name}}}}}}}"
        rule = f"{{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{term}]}}}}"
        entry += f", labels: {{app: {name}}}, affinity: {rule}"
    return entry


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

    text = shared("shared-200", num_nodes=200, num_pods=1_500, num_classes=60, seed=7)
    (HERE / "shared_200.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
