"""Whether a schedule is legal, from its start times alone."""

from __future__ import annotations

import numpy as np

from formulations.outcome import TOLERANCE
from formulations.parallelism.training.schedule.problem import Pass, SchedulePlan, ScheduleProblem
from planner.cost.verdict import Violation


def check(problem: ScheduleProblem, plan: SchedulePlan) -> list[Violation]:
    """Every broken rule: shape, waiting for other passes, one pass at a time, memory, and the order that it tells."""
    shape = (3, problem.num_chunks, problem.micro_batches)
    if plan.start_s.shape != shape or not np.isfinite(plan.start_s).all():
        message = f"start times have shape {plan.start_s.shape} or no value; {shape} are asked for"
        return [Violation(rule="shape", subject="schedule", message=message)]
    slack = TOLERANCE * float((plan.start_s + problem.pass_s[:, :, None]).max())
    return [
        *_waiting(problem, plan, slack),
        *(
            violation
            for device in range(problem.num_devices)
            for violation in (*_alone(problem, plan, device, slack), *_memory(problem, plan, device, slack))
        ),
    ]


def _waiting(problem: ScheduleProblem, plan: SchedulePlan, slack: float) -> list[Violation]:
    forward, backward, weight = plan.start_s
    end = plan.start_s + problem.pass_s[:, :, None]
    send = problem.send_s[:, None]
    rules = {
        "forward": forward[1:] - end[Pass.FORWARD, :-1] - send,
        "turn": backward[-1:] - end[Pass.FORWARD, -1:],
        "backward": backward[:-1] - end[Pass.BACKWARD, 1:] - send,
        "weight": weight - end[Pass.BACKWARD],
    }
    broken = []
    for rule, spare in rules.items():
        for chunk, micro in np.argwhere(spare < -slack).tolist():
            message = f"chunk {chunk}, micro-batch {micro} starts {-spare[chunk, micro]:g} s too early"
            broken.append(Violation(rule=rule, subject=f"chunk {chunk}", message=message))
    return broken


def _alone(problem: ScheduleProblem, plan: SchedulePlan, device: int, slack: float) -> list[Violation]:
    own = np.flatnonzero(problem.device == device)
    start = plan.start_s[:, own].ravel()
    end = (plan.start_s + problem.pass_s[:, :, None])[:, own].ravel()
    turn = np.lexsort((end, start))
    broken = []
    if (start[turn][1:] < end[turn][:-1] - slack).any():
        message = "two passes run at the same time"
        broken.append(Violation(rule="one_pass", subject=f"device {device}", message=message))
    tasks = plan.order[device] if device < len(plan.order) else ()
    told = [float(plan.start_s[task]) for task in tasks]
    if len(set(tasks)) != start.size or (np.diff(told) < -slack).any():
        message = "the order is not that of the start times"
        broken.append(Violation(rule="order", subject=f"device {device}", message=message))
    return broken


def _memory(problem: ScheduleProblem, plan: SchedulePlan, device: int, slack: float) -> list[Violation]:
    """Bytes kept at each start of a forward pass: what has started, less what has ended by then."""
    own = problem.device == device
    micro = problem.micro_batches
    starts = plan.start_s[Pass.FORWARD, own].ravel()
    backward_end = (plan.start_s[Pass.BACKWARD] + problem.pass_s[Pass.BACKWARD][:, None])[own].ravel()
    weight_end = (plan.start_s[Pass.WEIGHT] + problem.pass_s[Pass.WEIGHT][:, None])[own].ravel()
    until_backward = np.repeat(problem.until_backward_bytes[own], micro)
    until_weight = np.repeat(problem.until_weight_bytes[own], micro)
    begun = starts[None] <= starts[:, None] + slack
    held = (begun & (backward_end[None] > starts[:, None] + slack)) @ until_backward
    held = held + (begun & (weight_end[None] > starts[:, None] + slack)) @ until_weight
    room = float(problem.capacity_bytes[device])
    if held.max() <= room * (1 + TOLERANCE):
        return []
    message = f"{held.max():g} bytes are kept, room for {room:g}"
    return [Violation(rule="memory", subject=f"device {device}", message=message)]
