"""Every rule of a plan of windows, from its decisions alone; no solver."""

from __future__ import annotations

from formulations.parallelism.windows.problem import WindowsProblem
from planner.cost.verdict import Violation
from planner.layers_plan import WindowsPlan

#: Relative difference of a claimed number that is rounding.
ROUNDING = 1e-6


def check(problem: WindowsProblem, plan: WindowsPlan) -> list[Violation]:
    """Broken rules; an empty list for a plan that keeps them all."""
    found: list[Violation] = []

    def broken(rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None) -> None:
        found.append(Violation(rule=rule, subject=subject, message=message, amount=amount, limit=limit))

    order = [one.device for one in plan.windows]
    unknown = sorted(set(order) - set(problem.names))
    if unknown:
        broken("device", unknown[0], f"there is no device {', '.join(unknown)}")
        return found
    if [name for name in problem.names if name in order] != order:
        broken("ring", "plan", f"windows are not one a device in ring order: {', '.join(order)}")
        return found
    if (plan.num_layers, plan.rounds) != (problem.num_layers, problem.rounds):
        told = f"{plan.num_layers} layers in {plan.rounds} rounds"
        broken("num_layers", "plan", f"{told}, the instance says {problem.num_layers} in {problem.rounds}")
    layers, on_gpu = problem.arrays_of(plan)
    covered = int(layers.sum()) * problem.rounds
    if covered != problem.num_layers:
        message = f"the windows hold {covered} layers of {problem.num_layers}"
        broken("cover", "plan", message, float(covered), float(problem.num_layers))
    for i, name in enumerate(problem.names):
        if on_gpu[i] > problem.gpu_layers[i]:
            message = f"{on_gpu[i]} layers a round on the GPU of {name}, which holds {problem.gpu_layers[i]}"
            broken("gpu_memory", name, message, float(on_gpu[i]), float(problem.gpu_layers[i]))
        if on_gpu[i] > layers[i]:
            broken("split", name, f"{on_gpu[i]} of {layers[i]} layers on the GPU of {name}")
        if problem.every_device and not layers[i]:
            broken("every_device", name, f"{name} has no layers")
    if found:
        return found
    again = problem.plan_of(layers, on_gpu)
    pairs = [("plan", "token_s", again.token_s, plan.token_s)]
    for one, claimed in zip(again.windows, plan.windows, strict=True):
        for key in ("resident_bytes", "reloaded_bytes", "compute_s", "disk_s", "hop_s"):
            pairs.append((one.device, key, getattr(one, key), getattr(claimed, key)))
    for subject, key, value, said in pairs:
        if abs(value - said) > ROUNDING * max(abs(value), abs(said)):
            broken(key, subject, f"{key} of {subject} is {value:.6g}, the plan says {said:.6g}", said, value)
    return found
