"""Small training instances."""

from __future__ import annotations

from typing import Any

from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.reading import read_problem
from planner.descriptions.training import TrainingInstance

SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "gated": True,
}
#: Two nodes of four GPUs.
CLUSTER = {"nodes": [{"device": "a100_sxm", "count": 2, "gpus_per_node": 4}], "network": {"link": "ib_hdr"}}


def instance(**changes: Any) -> TrainingInstance:
    """The small model on eight GPUs, 16 sequences of 4,096 tokens."""
    keys: dict[str, Any] = {
        "name": "small", "model": SMALL, "cluster": CLUSTER, "global_batch_size": 16, "sequence_length": 4096,
    }  # fmt: skip
    return TrainingInstance.model_validate(keys | changes)


def problem(**changes: Any) -> TrainProblem:
    return read_problem(instance(**changes))
