"""Every legal worker type of a model on a cluster, priced by the cost model in bulk.

Worker types: device kind x tensor x pipeline x attention-data parallel x expert parallel sizes, whole nodes beyond one.
For each, batches in half octaves: mixed workers (prefill and decode together) by the closed loop at that batch, decode
workers without any prompt between their steps, prefill workers by their prompts alone. Dominated ones are dropped
within each type's role: a batch that is no faster a request and no better in latency than another.
"""

from __future__ import annotations

import numpy as np

from formulations.parallelism.pareto import undominated
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import FloatArray
from planner.cluster import Cluster, Nodes
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.cost.serving.predict import ServingModel, ServingPlans, ServingPrediction
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.engines import unsupported
from planner.errors import DescriptionError, OptionError
from planner.model.spec import ModelSpec
from planner.parallel_plan import Role, WorkerType

#: Largest worker, GPUs; pipeline stages that are tried; sequences of an attention rank at most, half octaves.
MOST_GPUS, STAGES, BATCHES = 64, (1, 2, 4), np.unique(np.round(2.0 ** np.arange(0, 10.5, 0.5)))
#: Prompts fill a prefill worker to this share: the rest is idle between arrivals. Source: AIConfigurator's 0.90
#: degradation of prefill throughput; modelled.
PREFILL_UTILISATION = 0.90
#: Of decode likewise. Source: AIConfigurator, 0.92; modelled.
DECODE_UTILISATION = 0.92

#: Network of one GPU on a single node without one: 400 Gbit/s. Source: ConnectX-7 datasheet; datasheet.
DEFAULT_KV_BANDWIDTH = 50e9


class DoesNotFit(OptionError):
    """The model fits at no split of the cluster."""


def predicted_workers(
    instance: ParallelInstance, cluster: Cluster, spec: ModelSpec, coefficients: Coefficients | None = None
) -> tuple[tuple[WorkerType, ...], tuple[str, ...], Predictions]:
    """Worker types with their predicted rates and latencies, what was assumed, and what else is known of them.

    coefficients : by default those of the catalogue.

    Raises OptionError for an unknown precision, DoesNotFit where the model fits nowhere.
    """
    precision = instance.precision or ""
    if precision and precision not in WEIGHT_FORMATS:
        raise OptionError(f"unknown precision {precision!r}; known: {', '.join(sorted(WEIGHT_FORMATS))}")
    model = served(spec, precision, precision)
    shapes = [worker for nodes in cluster.resolved() for worker in legal_workers(instance, model, nodes)]
    compiled, refused = [], f"{model.name} cannot be split over the GPUs of this cluster"
    for worker in shapes:
        try:
            compiled.append(ServingModel([worker], coefficients))
        except (OptionError, DescriptionError) as error:
            refused = str(error)
    kept = [one for one in compiled if one.memory[0].cache_capacity_bytes > 0]
    if not kept:
        raise DoesNotFit(_too_large(model, compiled) if compiled else refused)
    made: list[WorkerType] = []
    models: dict[str, ServingModel] = {}
    given = instance.kv_bandwidth_bytes_per_s
    network = {
        nodes.device.name: given or nodes.nic_bandwidth_bytes_per_s or DEFAULT_KV_BANDWIDTH
        for nodes in cluster.resolved()
    }
    for one in kept:
        types = _types(instance, one, network[one.workers[0].device.name])
        models |= dict.fromkeys((new.name for new in types), one)
        made += types
    priced = len(made)
    made = [one for one in made if unsupported(instance.backend, one) is None]
    if not made:
        raise DoesNotFit("no worker holds even one sequence of this length; shorten it or use larger GPUs")
    notes = (
        f"{len(kept)} worker shapes, {len(made)} worker types after dropping dominated batches",
        f"{priced - len(made)} more that {instance.backend} cannot run are left out",
        f"prefill and decode workers run at {PREFILL_UTILISATION:.0%} and {DECODE_UTILISATION:.0%} of their rate",
    )
    predictions = Predictions(models, instance.workload.input_tokens, instance.workload.output_tokens)
    return predictions.annotated(made, {"decode": DECODE_UTILISATION}), notes, predictions


def legal_workers(instance: ParallelInstance, model: ModelSpec, nodes: Nodes) -> list[ServingWorker]:
    """Every split that the model and the node allow: tensor parallelism inside a scale-up domain, attention ranks and
    stages over whole nodes."""
    found = []
    moe = model.num_moe_layers > 0
    limit = min(nodes.num_gpus, MOST_GPUS)
    joined = min(max(nodes.domain_gpus, 1), nodes.gpus_per_node) if nodes.domain_gpus > 1 else nodes.gpus_per_node
    tensor = 1
    while tensor <= min(joined, limit):
        for stages in STAGES:
            ranks = 1
            while tensor * stages * ranks <= limit:
                gpus = tensor * ranks
                for expert in {1, gpus} if moe else {1}:
                    worker = ServingWorker(
                        model=model,
                        device=nodes.device,
                        backend=instance.backend,
                        tensor_parallel_size=tensor,
                        pipeline_parallel_size=stages,
                        data_parallel_size=ranks,
                        moe_tensor_parallel_size=gpus // expert,
                        expert_parallel_size=expert,
                        kv_element_bytes=kv_element_bytes(model, instance.backend),
                    )
                    whole = worker.num_gpus <= nodes.gpus_per_node or worker.num_gpus % nodes.gpus_per_node == 0
                    # Attention ranks share experts; without experts they are just replicas.
                    if whole and (moe or ranks == 1) and not any(worker.problems()):
                        found.append(worker)
                ranks *= 2
        tensor *= 2
    return found


def _too_large(model: ModelSpec, compiled: list[ServingModel]) -> str:
    least = min(compiled, key=lambda one: one.memory[0].fixed_bytes)
    memory, worker = least.memory[0], least.workers[0]
    return (
        f"{model.name} fits at no split: on {worker.num_gpus} x {worker.device.name} weights and overheads alone take"
        f" {memory.fixed_bytes / 1e9:.0f} of {memory.usable_bytes / 1e9:.0f} GB a GPU; narrow the weights or add GPUs"
    )


def _types(instance: ParallelInstance, model: ServingModel, kv_bandwidth_bytes_per_s: float) -> list[WorkerType]:
    worker, load = model.workers[0], instance.workload
    plans = ServingPlans.of(0, BATCHES * worker.data_parallel_size, load.input_tokens, load.output_tokens)
    found = model.predict(plans)
    runs = found.admitted_sequences >= plans.concurrency
    made: list[WorkerType] = []
    if instance.disaggregated != "only":
        made += _mixed(worker, plans, found, runs)
    if instance.disaggregated != "never":
        made += _decoding(worker, plans, found, runs)
        made += _prefilling(instance, model, kv_bandwidth_bytes_per_s)
    return made


def _mixed(
    worker: ServingWorker,
    plans: ServingPlans,
    found: ServingPrediction,
    runs: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> list[WorkerType]:
    rate = found.output_tokens_per_s / plans.output_tokens
    kept = np.flatnonzero(runs)
    best = kept[undominated(rate[kept], found.ttft_s[kept], found.tpot_s[kept], np.zeros(kept.size))]
    return [
        _type(worker, "both", int(plans.concurrency[b]), float(rate[b]), float(found.ttft_s[b]), float(found.tpot_s[b]))
        for b in best.tolist()
    ]


def _decoding(
    worker: ServingWorker,
    plans: ServingPlans,
    found: ServingPrediction,
    runs: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> list[WorkerType]:
    step = found.step_s
    rate = DECODE_UTILISATION * plans.concurrency / (step * plans.output_tokens)
    kept = np.flatnonzero(runs)
    best = kept[undominated(rate[kept], np.zeros(kept.size), step[kept], np.zeros(kept.size))]
    return [
        _type(worker, "decode", int(plans.concurrency[b]), float(rate[b]), None, float(step[b])) for b in best.tolist()
    ]


def _prefilling(instance: ParallelInstance, model: ServingModel, kv_bandwidth_bytes_per_s: float) -> list[WorkerType]:
    """One prompt after another on every attention rank; the cache goes to the decode worker over the network."""
    worker = model.workers[0]
    one = ServingPlans.of(0, worker.data_parallel_size, instance.workload.input_tokens, 1)
    alone = float(model.first_token_parts(one)["alone"][0])
    first = model.predict(one)
    if first.admitted_sequences[0] < worker.data_parallel_size:
        return []
    # Stages work on different prompts, so that a rank begins one as often as a stage takes.
    service = alone / worker.pipeline_parallel_size
    rate = PREFILL_UTILISATION * worker.data_parallel_size / service
    # A queue at this load: half a service for each prompt in front, M/D/1.
    load = PREFILL_UTILISATION
    wait = service * load / (2.0 * (1.0 - load))
    # The prompt's cache goes to another worker, all GPUs of a rank sending at once.
    size: FloatArray = model.table("cache_bytes", one.worker, one.input_tokens)
    moved = float(size[0]) / kv_bandwidth_bytes_per_s
    return [_type(worker, "prefill", 1, rate, float(first.ttft_s[0]) + wait + moved, None)]


def _type(
    worker: ServingWorker, role: Role, batch: int, rate: float, ttft: float | None, tpot: float | None
) -> WorkerType:
    sizes = f"tp{worker.tensor_parallel_size}"
    for short, size in (
        ("pp", worker.pipeline_parallel_size),
        ("dp", worker.data_parallel_size),
        ("ep", worker.expert_parallel_size),
    ):
        sizes += f"-{short}{size}" if size > 1 else ""
    batched = "" if role == "prefill" else f"-b{batch}"
    return WorkerType(
        name=f"{role}-{worker.device.name}-{sizes}{batched}",
        role=role,
        device=worker.device.name,
        num_gpus=worker.num_gpus,
        tensor_parallel_size=worker.tensor_parallel_size,
        pipeline_parallel_size=worker.pipeline_parallel_size,
        data_parallel_size=worker.data_parallel_size,
        expert_parallel_size=worker.expert_parallel_size,
        max_batch_size=batch,
        requests_per_s=rate,
        ttft_s=ttft,
        tpot_s=tpot,
    )
