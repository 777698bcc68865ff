"""The cost model's verdict on a plan over unequal GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from formulations.parallelism.training.mixed.check import check
from formulations.parallelism.training.mixed.plans import peak_flop_per_s, price
from formulations.parallelism.training.mixed.problem import MixedProblem
from planner.cost.training.judge import STEP_WORDS
from planner.cost.verdict import Metric, Verdict
from planner.training_plan import TrainingPlan

#: Parts of a step that only unequal GPUs have.
PART_WORDS: Mapping[str, str] = {**STEP_WORDS, "replicas": "the slowest replica"}


def judge(problem: MixedProblem, plan: TrainingPlan) -> Verdict:
    """The rules, then step and memory of every stage on its own kind."""
    broken = tuple(check(problem, plan))
    if broken:
        return Verdict(violations=broken, assumptions=problem.assumptions)
    found = price(problem, plan)
    measured = all(block.coefficients.source == "calibrated" for block in problem.blocks)
    rate = plan.global_batch_size * plan.sequence_length / found.step_s
    useful = float(problem.model.model_flops_per_token(plan.sequence_length))
    used = max(found.memory_bytes)

    def metric(name: str, value: float, unit: str) -> Metric:
        return Metric(name=name, value=value, unit=unit, source="calibrated" if measured else "datasheet")

    shared = "links between sites are shared by all that crosses them, and no other traffic is on them"
    worst = max(found.parts, key=lambda name: found.parts[name])
    return Verdict(
        metrics=(
            metric("step_s", found.step_s, "s"),
            metric("tokens_per_s", rate, "1/s"),
            metric("tokens_per_s_per_gpu", rate / plan.num_gpus, "1/s"),
            metric("mfu", rate * useful / peak_flop_per_s(problem, plan), "fraction"),
            metric("memory_bytes", used, "bytes"),
            *(metric(f"step.{name}", seconds, "s") for name, seconds in found.parts.items()),
            metric("gpu_s_per_step", found.step_s * plan.num_gpus, "s"),
        ),
        bottleneck=f"{PART_WORDS[worst]}: {found.parts[worst] / found.step_s:.0%} of a step",
        assumptions=(
            "weights in 16 bits, fp32 master weights and two Adam moments; flash attention",
            *((shared,) if any(site is not None for site in problem.sites) else ()),
            *problem.assumptions,
        ),
    )
