"""Small training instances over unequal GPUs, and every plan of them one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

from formulations.parallelism.training.mixed.check import check
from formulations.parallelism.training.mixed.plans import _document, _stage, price
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.reading import read_any
from planner.training_plan import TrainingPlan, TrainingStage
from tests.formulations.parallelism.training.train_cases import SMALL, instance

TINY = {**SMALL, "num_hidden_layers": 3}
#: Two GPUs of each of two kinds at one place.
PAIR = {
    "nodes": [
        {"device": "h100_sxm", "count": 1, "gpus_per_node": 2},
        {"device": "a100_sxm", "count": 1, "gpus_per_node": 2},
    ],
    "network": {"link": "ib_hdr"},
}
THREE = {
    "nodes": [
        {"device": "h100_sxm", "count": 1, "gpus_per_node": 1},
        {"device": "l40s", "count": 1, "gpus_per_node": 2},
        {"device": "a100_sxm", "count": 1, "gpus_per_node": 2},
    ],
    "network": {"link": "ib_hdr"},
}


def sites(bandwidth: str | None, latency: str = "10ms", names: tuple[str, ...] = ("oslo", "riga")) -> dict[str, Any]:
    """Each entry of cluster.nodes at a site of its own; links of one bandwidth."""
    count = len(names)

    def matrix(value: str | None) -> list[list[str | None]]:
        return [[None if one == other else value for other in range(count)] for one in range(count)]

    return {
        "names": list(names), "nodes": list(names), "bandwidth_bytes_per_s": matrix(bandwidth),
        "latency_s": matrix(None if bandwidth is None else latency),
    }  # fmt: skip


def mixed(**changes: Any) -> MixedProblem:
    """The tiny model on two H100 and two A100, 8 sequences of 2,048 tokens."""
    keys = {"model": TINY, "cluster": PAIR, "global_batch_size": 8, "sequence_length": 2048}
    found = read_any(instance(**(keys | changes)))
    assert isinstance(found, MixedProblem)
    return found


def _runs(problem: MixedProblem, order: tuple[int, ...]) -> list[tuple[int, int]]:
    """(block, GPU) in the order of blocks."""
    return [(block, gpu) for block in order for gpu in range(problem.blocks[block].num_gpus)]


def every_pipeline(problem: MixedProblem, micro_batches: int) -> Iterator[TrainingPlan]:
    """All legal pipelines of runs of neighbouring GPUs, from the check and the price of documents alone."""
    sequences, layers = problem.any_block.global_batch_size // micro_batches, problem.model.num_layers
    for order in permutations(range(len(problem.blocks))):
        places = _runs(problem, order)

        def grow(
            rows: tuple[TrainingStage, ...], at: int, done: int, places: list[tuple[int, int]] = places
        ) -> Iterator[TrainingPlan]:
            if done == layers:
                last = rows[-1].model_copy(update={"head": True})
                plan = _document(problem, "stages", [*rows[:-1], last], micro_batches, len(rows))
                if not check(problem, plan):
                    yield plan
                return
            for end in range(at + 1, len(places) + 1):
                run = places[at:end]
                if len({block for block, _ in run}) > 1:
                    return
                for tensor, name, last_layer in product(
                    (1, 2), problem.any_block.recompute, range(done + 1, layers + 1)
                ):
                    data, left = divmod(len(run), tensor)
                    if left or sequences % data or run[0][1] % tensor:
                        continue
                    sizes = {
                        "tensor_parallel_size": tensor, "context_parallel_size": 1, "expert_parallel_size": 1,
                        "data_parallel_size": data, "micro_batch_size": sequences // data, "zero_stage": 1,
                        "recompute": name,
                    }  # fmt: skip
                    row = _stage(
                        problem, run[0][0], first=run[0][1], gpus=len(run), layers=last_layer - done,
                        ends=(not rows, False), sizes=sizes, more={"micro_batches": (micro_batches,) * data},
                    )  # fmt: skip
                    yield from grow((*rows, row), end, last_layer)

        for start in range(len(places)):
            yield from grow((), start, 0)


def best_of_all(problem: MixedProblem) -> float:
    """The fastest of all pipelines."""
    batch = problem.any_block.global_batch_size
    counts = [count for count in range(1, batch + 1) if batch % count == 0]
    return min(price(problem, plan).step_s for count in counts for plan in every_pipeline(problem, count))
