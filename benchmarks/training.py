"""Pieces of training plans: `python -m benchmarks.training [--short] [--json] [--case NAME]`.

References are stored answers of other planners to the same inputs, and the CPU they took where it was recorded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Row, data_folder, main
from formulations.backends import load_ortools_first
from formulations.parallelism.training import layer_strategies

#: Switches below this are tie-breakers between strategies of one layout in Galvatron's tables, seconds.
TIE_BREAKER_S = 1e-6


def stored(name: str) -> Any:
    """A stored JSON file of other planners' inputs and answers."""
    return json.loads((data_folder("training") / name).read_text(encoding="utf-8"))


def warm_up() -> None:
    """Load the solver's library, so that it does not count for the first instance."""
    load_ortools_first()
    from ortools.math_opt.python import mathopt  # noqa: F401
    from ortools.sat.python import cp_model  # noqa: F401


def galvatron_layers(short: bool) -> Iterator[Row]:
    """The 134 inner problems of Galvatron's own case, priced by its own times and switching table."""
    warm_up()
    reference = "Galvatron's dynamic program, stored"
    differ, worse, better, cpu_s, peer_cpu_s = 0, 0, 0, 0.0, 0.0
    ratios: list[float] = []
    instances = stored("galvatron_dp_instances.json")["instances"]
    for instance in instances:
        asked = layer_problem(instance)
        started_s = time.process_time()
        found = layer_strategies.choose(asked)
        cpu_s += time.process_time() - started_s
        peer_cpu_s += instance["dp_cpu_s"]
        peer_s = instance["dp_time_s"]
        differ += (found.plan is None) != (peer_s is None)
        if found.plan is None or peer_s is None:
            continue
        assert not layer_strategies.check(asked, found.plan)
        chosen = [block.strategy for block in found.plan.blocks for _ in range(block.layers)]
        switch_s = np.array(instance["switch_s"])
        ours_s = instance["other_time_s"] + sum(instance["time_s"][s] for s in chosen)
        ours_s += float(switch_s[chosen[:-1], chosen[1:]].sum())
        ratios.append(ours_s / peer_s)
        worse, better = worse + (ratios[-1] > 1 + 1e-6), better + (ratios[-1] < 1 - 1e-6)
    case = f"{len(instances)} inner problems of Galvatron"
    yield Row(case, "feasible in one, not in the other", differ, 0.0, reference, "count", "lower")
    yield Row(case, "slower than the peer's", worse, 0.0, reference, "count", "lower")
    yield Row(case, "faster than the peer's", better, 0.0, reference, "count", "higher")
    yield Row(case, "time / peer's, mean", float(np.mean(ratios)), 1.0, reference, "ratio", "lower")
    yield Row(case, "time / peer's, highest", max(ratios), 1.0, reference, "ratio", "lower")
    yield Row(case, "CPU of all", cpu_s, peer_cpu_s, reference + " (C++)", "CPU s", "lower")


def layer_problem(instance: dict[str, Any]) -> layer_strategies.LayerProblem:
    """An inner problem with its strategies grouped into families: those between which switching costs nothing."""
    switch_s = np.array(instance["switch_s"])
    family: npt.NDArray[np.int64] = np.unique(switch_s < TIE_BREAKER_S, axis=0, return_inverse=True)[1].ravel()
    size = int(family.max()) + 1
    between = np.array([[switch_s[np.ix_(family == a, family == b)].max() for b in range(size)] for a in range(size)])
    np.fill_diagonal(between, 0.0)
    return layer_strategies.LayerProblem(
        layers=np.array([instance["layers"]]),
        time_s=np.array([instance["time_s"]]),
        memory_bytes=np.array([instance["mem_mb"]]) * 1024.0**2,
        family=family,
        switch_s=between,
        capacity_bytes=instance["cap_mb"] * 1024.0**2,
    )


CASES = {"galvatron": galvatron_layers}

if __name__ == "__main__":
    main("training", CASES)
