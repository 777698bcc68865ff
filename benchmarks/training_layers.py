"""What plans gain whose layers differ, and what networks cost; see benchmarks.training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.common import Row
from benchmarks.training_search import executions, scenario
from formulations.base import solve
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.problem import LayerScope, TrainProblem
from formulations.parallelism.training.search.reading import read_problem
from planner.descriptions.training import TrainingInstance

#: What layers may differ in, from nothing to all.
SCOPES: tuple[LayerScope, ...] = ("uniform", "chunk", "stage", "any")
#: Networks of 64 nodes: what joins them.
NETWORKS: dict[str, dict[str, Any]] = {
    "flat": {},
    "leaf-spine 1 : 1": {"topology": "leaf_spine", "nodes_per_leaf": 8},
    "leaf-spine 4 : 1": {"topology": "leaf_spine", "nodes_per_leaf": 8, "oversubscription": 4.0},
    "rail only": {"topology": "rail_only"},
}


def layers(short: bool) -> Iterator[Row]:
    """Calculon's six scenarios, where memory is tight: the best step under each freedom of the layers."""
    reference = "all layers alike, ours"
    for name in list(executions())[: 2 if short else None]:
        asked = scenario(name)
        alike = None
        for scope in SCOPES:
            started_s = time.process_time()
            found = solve(TRAINING, replace(asked, layer_scope=scope))
            spent_s = time.process_time() - started_s
            assert found.objective is not None
            assert found.bound is not None
            alike = found.objective.total if alike is None else alike
            yield Row(name, f"step, {scope}", found.objective.total, alike, reference, "s", "lower")
            yield Row(name, f"bound, {scope}", found.bound.value, found.objective.total, "its step", "s", "higher")
            yield Row(name, f"CPU, {scope}", spent_s, None, "-", "CPU s", "lower")


def networks(short: bool) -> Iterator[Row]:
    """Two models on 512 H100: the best plan for each network, beside the plan that was best on the flat one."""
    for model, batch in (("meta-llama/Llama-3.1-70B", 1024), ("Qwen/Qwen3-235B-A22B", 2048))[: 1 if short else None]:
        chosen = None
        for name, network in NETWORKS.items():
            asked = on(model, batch, network)
            found = solve(TRAINING, asked)
            assert found.plan is not None
            chosen = chosen or found.plan
            told = "the plan for the flat network, priced here"
            moved_s = TRAINING.objective(asked, chosen).total
            yield Row(f"{model.split('/')[1]}, {name}", "step", found.plan.step_s, moved_s, told, "s", "lower")


def on(model: str, batch: int, network: dict[str, Any]) -> TrainProblem:
    """A model on 64 nodes of eight H100 joined by a network."""
    instance = {
        "name": "network",
        "model": model,
        "cluster": {"nodes": [{"device": "h100_sxm", "count": 64}], "network": {"link": "ib_ndr", **network}},
        "global_batch_size": batch,
        "sequence_length": 8192,
    }
    return read_problem(TrainingInstance.model_validate(instance))
