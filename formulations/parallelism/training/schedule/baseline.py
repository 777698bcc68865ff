"""The field's rules for the order of passes, each as a list of passes a device.

1F1B and interleaved 1F1B: Megatron-LM (arXiv 2104.04473). Breadth-first: arXiv 2211.05953. GPipe: arXiv 1811.06965.
In these W follows its B at once, and the gradient of the input is sent after both: they are one call of autograd.
"""

from __future__ import annotations

from dataclasses import replace

from formulations.parallelism.training.schedule.problem import Pass, SchedulePlan, ScheduleProblem, Task, timed

Order = tuple[tuple[Task, ...], ...]


def one_forward_one_backward(problem: ScheduleProblem) -> Order:
    """1F1B; with several chunks a device in turn (chunk c on device c mod D) its interleaved form.

    The interleaved form takes micro-batches in groups of as many as there are devices; ValueError where they do not
    divide, and where chunks lie otherwise.
    """
    devices, micro = problem.num_devices, problem.micro_batches
    rounds = _rounds(problem)
    if rounds > 1 and micro % devices:
        raise ValueError(f"interleaving takes micro-batches in groups of {devices}; {micro} there are")
    total = rounds * micro
    order = []
    for device in range(devices):
        forwards = [_virtual(Pass.FORWARD, step, device, devices, rounds) for step in range(total)]
        backwards = [_virtual(Pass.BACKWARD, step, device, devices, rounds) for step in range(total)]
        warm_up = devices - device - 1
        if rounds > 1:
            warm_up = 2 * warm_up + (rounds - 1) * devices
        warm_up = min(warm_up, total)
        tasks = forwards[:warm_up]
        for step in range(total):
            if warm_up + step < total:
                tasks.append(forwards[warm_up + step])
            tasks += _with_weight(backwards[step])
        order.append(tuple(tasks))
    return tuple(order)


def _virtual(kind: int, step: int, device: int, devices: int, rounds: int) -> Task:
    """The pass at a place of Megatron's sequence: a group of micro-batches through each of the device's chunks."""
    group, within = divmod(step, devices * rounds)
    turn, offset = divmod(within, devices)
    if kind == Pass.BACKWARD:
        turn = rounds - 1 - turn
    micro = group * devices + offset if rounds > 1 else step
    return (kind, turn * devices + device, micro)


def breadth_first(problem: ScheduleProblem) -> Order:
    """All micro-batches through a device's chunk before the next chunk; backward the other way. GPipe for one chunk."""
    rounds = _rounds(problem)
    order = []
    for device in range(problem.num_devices):
        chunks = [turn * problem.num_devices + device for turn in range(rounds)]
        tasks: list[Task] = [(Pass.FORWARD, chunk, micro) for chunk in chunks for micro in range(problem.micro_batches)]
        for chunk in reversed(chunks):
            for micro in range(problem.micro_batches):
                tasks += _with_weight((Pass.BACKWARD, chunk, micro))
        order.append(tuple(tasks))
    return tuple(order)


def joined(problem: ScheduleProblem, order: Order) -> SchedulePlan:
    """Start times where B and W are one pass, after which the gradient of the input is sent."""
    _, backward_s, weight_s = problem.pass_s
    pass_s = problem.pass_s.copy()
    pass_s[Pass.BACKWARD], pass_s[Pass.WEIGHT] = backward_s + weight_s, 0.0
    plan = timed(replace(problem, pass_s=pass_s), order)
    start_s = plan.start_s.copy()
    start_s[Pass.WEIGHT] = start_s[Pass.BACKWARD] + backward_s[:, None]
    return SchedulePlan(start_s, plan.order)


def _with_weight(task: Task) -> list[Task]:
    return [task, (Pass.WEIGHT, task[1], task[2])]


def _rounds(problem: ScheduleProblem) -> int:
    """Chunks of a device; ValueError unless they are dealt out in turn."""
    rounds, left = divmod(problem.num_chunks, problem.num_devices)
    if left or (problem.device != [c % problem.num_devices for c in range(problem.num_chunks)]).any():
        raise ValueError("this rule deals chunks out to devices in turn")
    return rounds
