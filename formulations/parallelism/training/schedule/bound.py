"""A lower bound of the period from what memory lets a device do while it waits.

For a device d with one chunk, let R = sum_{c >= d} (t[F,c] + t[B,c]) + 2 sum_{c >= d} s[c] be the least time from the
start of a forward pass to the end of its backward pass, and K the micro-batches whose activations it can keep.

- First forward start to first backward end takes R. Nothing is given back meanwhile, so it runs at most K forward
  passes and that backward pass: it waits R - K t[F] - t[B] at least.
- Last forward start to last backward end takes R. With a micro-batches before their B and e before their W at that
  start, a mb + e mw <= M; it runs one forward pass, a backward passes, and at most e - 1 weight passes, as the last
  must come after: it waits R - t[F] - max (a t[B] + (e - 1) t[W]) at least.
- With more than K micro-batches the first window ends before the last begins, and both waits add to the work.
"""

from __future__ import annotations

from formulations.outcome import TOLERANCE
from formulations.parallelism.training.schedule.problem import Pass, ScheduleProblem


def period_bound_s(problem: ScheduleProblem) -> float:
    """No schedule that fits into memory has a shorter period."""
    work_s = problem.work_s
    if problem.device.tolist() != list(range(problem.num_devices)):
        return float(work_s.max())
    return max(float(work_s[device]) + waiting_s(problem, device) for device in range(problem.num_devices))


def waiting_s(problem: ScheduleProblem, device: int) -> float:
    """Seconds that a device with one chunk waits at least; 0 where not even one micro-batch fits."""
    forward_s, backward_s, weight_s = problem.pass_s[:, device].tolist()
    around_s = float(problem.pass_s[: Pass.WEIGHT, device:].sum() + 2.0 * problem.send_s[device:].sum())
    micro, room = problem.micro_batches, float(problem.capacity_bytes[device]) * (1 + TOLERANCE)
    before_backward, before_weight = (
        float(kept[device]) for kept in (problem.until_backward_bytes, problem.until_weight_bytes)
    )
    keep = before_backward + before_weight
    kept = micro if keep * micro <= room else int(room // keep)
    if kept < 1:
        return 0.0
    first_s = max(0.0, around_s - kept * forward_s - backward_s)
    busy_s = 0.0
    for backward in range(1, kept + 1):
        spare = room - backward * before_backward
        weight = micro if before_weight * micro <= spare else int(spare // before_weight)
        busy_s = max(busy_s, backward * backward_s + (weight - 1) * weight_s)
    last_s = max(0.0, around_s - forward_s - busy_s)
    return float(first_s + last_s if micro > kept else max(first_s, last_s))
