"""Whether groups are legal."""

from __future__ import annotations

from formulations.outcome import TOLERANCE
from formulations.parallelism.training.sequences.problem import SequencePlan, SequenceProblem
from planner.cost.verdict import Violation


def check(problem: SequenceProblem, plan: SequencePlan) -> list[Violation]:
    """Every broken rule: degrees, devices, each sequence once, room for tokens."""
    broken: list[Violation] = []
    degrees = set(problem.degrees.tolist())
    for number, group in enumerate(plan.groups):
        subject = f"group {number}"
        if group.degree not in degrees:
            message = f"no group may have {group.degree} devices"
            broken.append(Violation(rule="degree", subject=subject, message=message))
        known = [i for i in group.sequences if 0 <= i < problem.tokens.size]
        tokens, room = int(problem.tokens[known].sum()), problem.tokens_per_device * group.degree
        if tokens > room * (1 + TOLERANCE):
            message = f"{tokens} tokens, room for {room:.0f}"
            broken.append(Violation(rule="memory", subject=subject, message=message))
        if not group.sequences:
            broken.append(Violation(rule="empty", subject=subject, message="a group without a sequence"))
    used = sum(group.degree for group in plan.groups)
    if used > problem.num_devices:
        message = f"{used} devices are used, {problem.num_devices} there are"
        broken.append(Violation(rule="devices", subject="groups", message=message))
    held = sorted(i for group in plan.groups for i in group.sequences)
    if held != list(range(problem.tokens.size)):
        broken.append(Violation(rule="cover", subject="sequences", message="not every sequence is held once"))
    return broken
