"""Windows of layers as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.kinds import Kind
from formulations.parallelism.windows.check import check
from formulations.parallelism.windows.formulation import WINDOWS
from formulations.parallelism.windows.problem import WindowsProblem
from formulations.parallelism.windows.reading import read_problem
from planner.cost.verdict import Metric, Verdict, Violation
from planner.descriptions.layers import WindowsInstance
from planner.layers_plan import WindowsPlan
from planner.plan import WindowsDocument

ASSUMED = ("reading from disk does not overlap with computing", "caches and prompts are not counted")


def judge(problem: WindowsProblem, plan: WindowsPlan) -> Verdict:
    """The rules, the parts of a token's time, and the device that takes most of it."""
    broken = tuple(check(problem, plan))
    if broken:
        return Verdict(violations=broken)
    parts = WINDOWS.objective(problem, plan).parts
    metrics = [Metric(name="token_s", value=plan.token_s, unit="s", source="modelled")]
    metrics += [Metric(name=name, value=value, unit="s", source="modelled") for name, value in parts.items()]
    slowest = max(plan.windows, key=lambda one: one.compute_s + one.disk_s)
    what = "disk" if slowest.disk_s > slowest.compute_s else "computing"
    share = (slowest.compute_s + slowest.disk_s) / plan.token_s
    return Verdict(
        metrics=tuple(metrics),
        bottleneck=f"{slowest.device}: {share:.0%} of a token's time, most of it {what}",
        assumptions=ASSUMED,
    )


def judge_alone(plan: WindowsPlan) -> Verdict:
    """Sums only: memory and times need the instance."""
    held = sum(one.num_layers for one in plan.windows) * plan.rounds
    found: tuple[Violation, ...] = ()
    if held != plan.num_layers:
        message = f"the windows hold {held} layers of {plan.num_layers}"
        found = (Violation(rule="cover", subject="plan", message=message),)
    return Verdict(violations=found, assumptions=("no instance given: memory and times are not judged",))


KIND: Kind[WindowsInstance, WindowsProblem, WindowsPlan] = Kind(
    name="windows",
    instance=WindowsInstance,
    document=WindowsDocument,
    formulation=WINDOWS,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
