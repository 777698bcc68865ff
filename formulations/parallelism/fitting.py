"""What makes a model fit that fits nowhere on a cluster: more GPUs of a kind that is there, or narrower weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from formulations.parallelism.splits import MOST_STAGED_GPUS, legal_workers
from planner.cluster import Cluster, Nodes
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.precision import served
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError, OptionError
from planner.model.spec import ModelSpec

#: Formats that are tried, widest first.
NARROWER = ("fp8", "int4")


def ways_to_fit(instance: ParallelInstance, cluster: Cluster, spec: ModelSpec) -> tuple[str, ...]:
    """The fewest GPUs of each kind that hold the model with one request a rank; the widest format that fits here."""
    asked = instance.precision or ""
    ways = []
    for nodes in cluster.resolved():
        enough = replace(nodes, count=max(nodes.count, -(-MOST_STAGED_GPUS // nodes.gpus_per_node)))
        worker = _smallest(instance, served(spec, asked, asked), (enough,))
        if worker is None:
            ways.append(f"no {enough.num_gpus} x {nodes.device.name} hold it however it is split: take larger GPUs")
            continue
        split = f"tp {worker.tensor_parallel_size}, pp {worker.pipeline_parallel_size}"
        ways.append(
            f"{worker.num_gpus} x {worker.device.name} in nodes of {nodes.gpus_per_node} hold it"
            f" ({split}, dp {worker.data_parallel_size}); the cluster has {nodes.num_gpus}"
        )
    for name in NARROWER:
        narrow = served(spec, name, name)
        if narrow is not spec and _smallest(instance, narrow, cluster.resolved()) is not None:
            ways.append(f"precision {name} fits on this cluster")
            break
    return tuple(ways)


def _smallest(instance: ParallelInstance, model: ModelSpec, nodes: Iterable[Nodes]) -> ServingWorker | None:
    # Workers that share prompts or make drafts hold no less beside their caches, and answer other questions.
    plain = instance.model_copy(update={"speculation": None})
    shapes = [
        worker
        for group in nodes
        for staged in (False, True)
        for worker in legal_workers(plain, model, group, staged=staged)
        if worker.context_parallel_size == 1
    ]
    return next((one for one in sorted(shapes, key=lambda one: one.num_gpus) if _holds(instance, one)), None)


def _holds(instance: ParallelInstance, worker: ServingWorker) -> bool:
    """Weights and a request for every attention rank."""
    if worker_memory(worker).cache_capacity_bytes <= 0:
        return False
    try:
        model = ServingModel([worker])
    except (OptionError, DescriptionError):
        return False
    load = instance.workload
    one = ServingPlans.of(0, worker.data_parallel_size, load.input_tokens, load.output_tokens)
    return bool(model.predict(one).admitted_sequences[0] >= worker.data_parallel_size)
