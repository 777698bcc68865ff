"""Training plans over unequal GPUs beside plain ones; see benchmarks.training.

The references are ours, from the same cost model: the best plan of one kind alone, and all GPUs as if they were equal.
The events are 1F1B with the plan's passes and sends, played one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Row
from formulations.base import solve
from formulations.outcome import SolveOptions
from formulations.parallelism.training.mixed.formulation import ANY_TRAINING
from formulations.parallelism.training.mixed.plans import price
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.timeline import events
from formulations.parallelism.training.schedule.baseline import joined, one_forward_one_backward
from formulations.parallelism.training.schedule.problem import span_s
from formulations.planning import load_problem

INSTANCES = Path(__file__).resolve().parents[1] / "instances" / "parallel"
#: Shipped clusters of several kinds or sites; the first is the short form's.
CASES = (
    "train_8b_a100_h100", "train_70b_a100_h100", "train_70b_two_sites", "train_8b_four_kinds",
    "train_405b_1536_two_kinds",
)  # fmt: skip


def mixed(short: bool) -> Iterator[Row]:
    """Each cluster: our step beside the bound, the best single kind, and equal replicas and stages on all GPUs."""
    for name in CASES[: 1 if short else None]:
        asked = load_problem(INSTANCES / f"{name}.yaml")
        assert isinstance(asked, MixedProblem)
        started_s = time.process_time()
        found = solve(ANY_TRAINING, asked, SolveOptions(time_limit_s=300))
        cpu_s = time.process_time() - started_s
        plan = found.plan
        assert plan is not None
        assert found.bound is not None
        ours_s = plan.step_s
        yield Row(name, "step", ours_s, found.bound.value, "our bound", "s", "lower")
        yield Row(name, "step", ours_s, plan.work_bound_s, "all work at each kind's best rate", "s", "lower")
        alone = [one.step_s for one in plan.alternatives if one.name.endswith(" alone") and one.step_s is not None]
        yield Row(name, "step", ours_s, min(alone, default=None), "the best single kind", "s", "lower")
        for one in plan.alternatives:
            if not one.name.endswith(" alone") and one.step_s is not None:
                yield Row(name, "step", ours_s, one.step_s, one.name, "s", "lower")
        if plan.layout == "stages":
            run = events(asked, plan)
            played_s = span_s(run, joined(run, one_forward_one_backward(run))) + price(asked, plan).parts["data"]
            yield Row(name, "step / its events", ours_s / played_s, 1.0, "1F1B, event by event", "ratio", "lower")
        yield Row(name, "CPU", cpu_s, None, "-", "CPU s", "lower")
