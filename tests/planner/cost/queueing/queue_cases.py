"""What the queueing tests share: step times, and a simulation so plain that it cannot be wrong in the same way."""

from __future__ import annotations

from planner.cost.queueing.step_times import Scheduler, StepTimes

NAMES = tuple(StepTimes.__dataclass_fields__)


def times_of(*values: float) -> StepTimes:
    """base, per sequence, per KV token, per prompt token, per token pair."""
    return StepTimes(**dict(zip(NAMES, values, strict=True)))  # type: ignore[arg-type]


#: About an 8B model on one H100.
FAST = times_of(5e-3, 1.5e-5, 4e-8, 2.7e-5, 1.3e-9)
BIG = times_of(15e-3, 3e-5, 1.3e-8, 6e-5, 1e-9)


def plain_simulation(
    times: StepTimes,
    rules: Scheduler,
    inputs: list[int],
    outputs: list[int],
    *,
    arrivals: list[float] | None = None,
    clients: int = 0,
) -> tuple[list[float], list[float]]:
    """First-token and finish times; every iteration and every token on its own, with reservation at admission."""
    count = len(inputs)
    arrival = list(arrivals) if arrivals is not None else [0.0] * min(clients, count)
    now, waiting, prefilling, decoding = 0.0, [], [], []
    first, finish, come = [0.0] * count, [0.0] * count, 0
    cached, made = [0] * count, [0] * count
    while min(made[i] - outputs[i] for i in range(count)) < 0:
        while come < len(arrival) and arrival[come] <= now:
            waiting.append(come)
            come += 1
        room = float(rules.max_num_batched_tokens) - (0 if rules.prefill_first else len(decoding))
        held = sum(inputs[i] + outputs[i] for i in prefilling + decoding)
        limit = min(float(rules.max_num_seqs), float(rules.max_num_batched_tokens))
        chunks: dict[int, int] = {}
        for i in list(prefilling):
            chunks[i] = int(min(inputs[i] - cached[i], room))
            room -= chunks[i]
        while waiting and room >= 1 and len(decoding) + len(prefilling) < limit:
            i = waiting[0]
            if held + inputs[i] + outputs[i] > float(rules.kv_capacity_tokens):
                break
            if not rules.chunked_prefill and inputs[i] > room:
                break
            held += inputs[i] + outputs[i]
            prefilling.append(waiting.pop(0))
            chunks[i] = int(min(inputs[i], room))
            room -= chunks[i]
        chunks = {i: chunk for i, chunk in chunks.items() if chunk}
        running = [] if chunks and rules.prefill_first else list(decoding)
        if not chunks and not running:
            now = arrival[come]
            continue
        kv = sum(cached[i] + 1 for i in running)
        seconds = float(times.step(len(running), kv))
        seconds += sum(float(times.prefill(chunk, cached[i])) for i, chunk in chunks.items())
        now += seconds
        for i in running:
            cached[i] += 1
            made[i] += 1
        for i, chunk in chunks.items():
            cached[i] += chunk
            if cached[i] == inputs[i]:
                first[i], made[i] = now, 1
                prefilling.remove(i)
                decoding.append(i)
        for i in list(decoding):
            if made[i] == outputs[i]:
                finish[i] = now
                decoding.remove(i)
                if arrivals is None and len(arrival) < count:
                    arrival.append(now)
    return first, finish
