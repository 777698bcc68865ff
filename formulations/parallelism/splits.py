"""Every legal split of a model over GPUs of one kind, as workers that the cost model can price.

Tensor parallelism inside a scale-up domain; attention ranks and stages over whole nodes; experts over all GPUs of a
stage or none. Beyond one node and 64 GPUs, for experts alone: one attention rank a GPU (wide expert parallelism), with
the fewest redundant experts that give every GPU as many slots. For prompts from LONG_PROMPT on: ranks that share them,
which then prefill only. With two-batch overlap asked for: each split without stages whose experts are on several nodes
with it too. With drafts asked for: each split without stages, with its MTP layer in use, which then does
not prefill only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.cluster import Nodes
from planner.cost.serving.precision import kv_element_bytes
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.errors import OptionError
from planner.model.spec import ModelSpec

#: Largest worker without wide expert parallelism, GPUs; pipeline stages that are tried.
MOST_GPUS, STAGES = 64, (1, 2, 4)
#: Stages and GPUs of workers for models that fit in no smaller one. Source: modelled.
MORE_STAGES, MOST_STAGED_GPUS = (8, 16, 32), 256
#: Ranks of wide expert parallelism. Source: published deployments (72 SGLang on H100, 144 DeepSeek on H800, 320
#: CloudMatrix384), and the sizes between them that 8-GPU nodes make; documented.
WIDE_RANKS = (72, 96, 128, 144, 192, 256, 320)
#: Tokens of a prompt from which ranks may share it, ranks that do, and GPUs of such a worker at most. Source: Meta's
#: context parallelism on 2 to 16 nodes of 8 for prompts of 128,000 and more (arXiv 2411.01783); below it a prompt is
#: a few steps of one rank; modelled.
LONG_PROMPT, SHARING_RANKS, MOST_SHARING_GPUS = 32_768, (2, 4, 8, 16), 128
#: Chance that the first draft of a model's own MTP layer is right. Source: DeepSeek-V3 technical report (arXiv
#: 2412.19437), section 5.4.3, 85 to 90 % over topics; the lower end; measured by its authors.
PUBLISHED_ACCEPTANCE = {"deepseek-ai/DeepSeek-V3": 0.85}


def legal_workers(
    instance: ParallelInstance, model: ModelSpec, nodes: Nodes, *, staged: bool = False
) -> list[ServingWorker]:
    """Every split that the model and the nodes allow, in whole nodes beyond one.

    staged : those with MORE_STAGES instead, which are slow and for models that fit in no other.
    """
    base = ServingWorker(
        model=model,
        device=nodes.device,
        backend=instance.backend,
        kv_element_bytes=kv_element_bytes(model, instance.backend),
    )
    if instance.expert_imbalance is not None:
        base = replace(base, expert_imbalance=instance.expert_imbalance)
    found = []
    usual = (*_narrow(base, nodes), *_wide(base, nodes), *_sharing(base, nodes, instance.workload.input_tokens))
    for worker in _staged(base, nodes) if staged else usual:
        whole = worker.num_gpus <= nodes.gpus_per_node or worker.num_gpus % nodes.gpus_per_node == 0
        # Attention ranks share experts; without experts they are just replicas.
        if whole and (model.num_moe_layers or worker.data_parallel_size == 1) and not any(worker.problems()):
            found.append(worker)
    if instance.two_batch_overlap:
        between = [
            replace(one, two_batch_overlap=True)
            for one in found
            if one.expert_parallel_size > nodes.gpus_per_node and one.context_parallel_size == 1
        ]
        found += [one for one in between if not any(one.problems())]
    asked = instance.speculation
    if asked is None or asked.acceptance is None:
        return found
    drafting = [
        replace(one, draft_tokens=asked.draft_tokens, draft_acceptance=asked.acceptance)
        for one in found
        if one.context_parallel_size == 1
    ]
    return [*found, *(one for one in drafting if not any(one.problems()))]


def drafting(instance: ParallelInstance, model: ModelSpec) -> ParallelInstance:
    """The instance with the acceptance of its drafts; OptionError where the model makes none, or none is published."""
    asked = instance.speculation
    if asked is None:
        return instance
    if not model.mtp:
        raise OptionError(f"{model.name} has no MTP layer that could propose tokens")
    acceptance = asked.acceptance if asked.acceptance is not None else PUBLISHED_ACCEPTANCE.get(model.name)
    if acceptance is None:
        raise OptionError(f"no acceptance of the drafts of {model.name} is published; give speculation.acceptance")
    return instance.model_copy(update={"speculation": asked.model_copy(update={"acceptance": acceptance})})


def _narrow(base: ServingWorker, nodes: Nodes) -> Iterator[ServingWorker]:
    limit = min(nodes.num_gpus, MOST_GPUS)
    for tensor in _powers(min(_joined(nodes), limit)):
        for stages in STAGES:
            for ranks in _powers(limit // (tensor * stages)):
                made = replace(
                    base,
                    tensor_parallel_size=tensor,
                    pipeline_parallel_size=stages,
                    data_parallel_size=ranks,
                )
                yield from _with_experts(made, nodes)


def _staged(base: ServingWorker, nodes: Nodes) -> Iterator[ServingWorker]:
    limit = min(nodes.num_gpus, MOST_STAGED_GPUS)
    for tensor in _powers(min(_joined(nodes), limit)):
        for stages in MORE_STAGES:
            if tensor * stages <= limit:
                made = replace(base, tensor_parallel_size=tensor, pipeline_parallel_size=stages)
                yield from _with_experts(made, nodes)


def _wide(base: ServingWorker, nodes: Nodes) -> Iterator[ServingWorker]:
    for ranks in WIDE_RANKS:
        if base.model.num_moe_layers and nodes.gpus_per_node < ranks <= nodes.num_gpus:
            made = replace(base, data_parallel_size=ranks, expert_parallel_size=ranks)
            yield from _with_redundancy(made, nodes)


def _sharing(base: ServingWorker, nodes: Nodes, input_tokens: int) -> Iterator[ServingWorker]:
    if input_tokens < LONG_PROMPT:
        return
    limit = min(nodes.num_gpus, MOST_SHARING_GPUS)
    for tensor in _powers(min(_joined(nodes), limit)):
        for ranks in SHARING_RANKS:
            if tensor * ranks <= limit:
                yield from _with_experts(replace(base, tensor_parallel_size=tensor, context_parallel_size=ranks), nodes)


def _with_experts(worker: ServingWorker, nodes: Nodes) -> Iterator[ServingWorker]:
    """Experts split by tensor, or one or more whole ones on each GPU of the stage."""
    gpus = worker.stage_gpus
    yield replace(worker, moe_tensor_parallel_size=gpus if worker.model.num_moe_layers else 1)
    if worker.model.num_moe_layers and gpus > 1:
        yield from _with_redundancy(replace(worker, expert_parallel_size=gpus), nodes)


def _with_redundancy(worker: ServingWorker, nodes: Nodes) -> Iterator[ServingWorker]:
    """None, and beyond one node the fewest that give every GPU equally many slots."""
    yield worker
    ranks = worker.expert_parallel_size
    counts = {layer.mlp.num_experts for layer, _ in worker.model.layer_groups()} - {0}
    more = {ranks - count % ranks for count in counts}
    if ranks > nodes.gpus_per_node and len(more) == 1 and max(more) <= min(counts):
        yield replace(worker, redundant_experts=max(more))


def _joined(nodes: Nodes) -> int:
    """GPUs that tensor parallelism may join: of a scale-up domain inside a node, or of a node without one."""
    return min(nodes.domain_gpus, nodes.gpus_per_node) if nodes.domain_gpus > 1 else nodes.gpus_per_node


def _powers(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2
