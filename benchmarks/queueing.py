"""How far the closed forms of planner/cost/queueing lie from the iteration-level simulation, and how fast both are.

    python -m benchmarks.queueing [--short] [--json] [--case NAME]

The simulation is the reference of every error; the `reference` column holds the error aimed at. Loads are shares of the
highest rate, in the open loop each with its own random arrivals.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import numpy as np

from benchmarks.common import Row, main, seconds
from planner.cost.disaggregated import decode_only, disaggregated, prefill_scheduler
from planner.cost.queueing.closed_loop import closed_loop
from planner.cost.queueing.open_loop import max_rate_under_slo, open_loop
from planner.cost.queueing.simulation import (
    Served,
    benchmark_requests,
    poisson_arrivals,
    simulate_closed_loop,
    simulate_open_loop,
    uniform_lengths,
)
from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.workload import FloatArray, IntArray

#: Four regimes, about an 8B model on one H100, a 70B model on four, an 8B model on an L40S, and a sparse model.
SPEEDS = {
    "8b": (5e-3, 1.5e-5, 4e-8, 2.7e-5, 1.3e-9),
    "70b": (15e-3, 3e-5, 1.3e-8, 6e-5, 1e-9),
    "slow": (40e-3, 2e-4, 1e-7, 2e-4, 5e-9),
    "moe": (20e-3, 1.5e-4, 1e-8, 1.2e-5, 2e-10),
}
#: Standard deviation over mean of lengths drawn evenly from 0.8 to 1.0 of the nominal one, as InferenceX draws them.
VARIED = 0.2 / 0.9 / 12**0.5
SCHEDULERS = {"mixed": False, "prefill first": True}
PERCENTILES = (0.5, 0.9, 0.99)


def step_times(values: tuple[float, ...]) -> StepTimes:
    return StepTimes(**dict(zip(StepTimes.__dataclass_fields__, values, strict=True)))  # type: ignore[arg-type]


def drawn(nominal: int, varied: bool, count: int, rng: np.random.Generator) -> IntArray:
    return uniform_lengths(round(0.8 * nominal) if varied else nominal, nominal, count, rng)


def error_rows(case: str, measure: str, ours: list[float], oracle: list[float], target: float | None) -> Iterator[Row]:
    error = np.abs(np.array(ours) / np.array(oracle) - 1) * 100
    yield Row(case, f"{measure}, mean |error|", float(error.mean()), target, "target", "%", "lower")
    yield Row(case, f"{measure}, median |error|", float(np.median(error)), None, "", "%", "lower")


def closed_loop_errors(short: bool) -> Iterator[Row]:
    lengths = (128, 1024, 8192) if short else (128, 512, 1024, 2048, 8192)
    outputs = (128, 2048) if short else (128, 512, 2048)
    clients = (1, 16, 256) if short else (1, 4, 16, 64, 256, 512)
    for (scheduler, first), varied in product(SCHEDULERS.items(), (False, True)):
        found: dict[str, tuple[list[float], list[float]]] = {"TTFT": ([], []), "TPOT": ([], [])}
        for speed, isl, osl, count in product(SPEEDS.values(), lengths, outputs, clients):
            closed_pair(found, step_times(speed), Scheduler(prefill_first=first), isl, osl, count, varied)
        case = f"closed, {scheduler}, {'varied' if varied else 'equal'} lengths"
        for measure, target in (("TTFT", 15.0), ("TPOT", 5.0)):
            yield from error_rows(case, measure, *found[measure], target)


def closed_pair(
    found: dict[str, tuple[list[float], list[float]]],
    times: StepTimes,
    rules: Scheduler,
    isl: int,
    osl: int,
    clients: int,
    varied: bool,
) -> Served:
    """Append the closed form's and the simulation's means."""
    rng = np.random.default_rng(isl + osl + clients)
    count = benchmark_requests(clients)
    inputs, outputs = drawn(isl, varied, count, rng), drawn(osl, varied, count, rng)
    served = simulate_closed_loop(times, rules, inputs, outputs, clients=clients)
    form = closed_loop(
        times,
        rules,
        input_tokens=inputs.mean(),
        output_tokens=outputs.mean(),
        clients=clients,
        length_spread=VARIED if varied else 0.0,
    )
    for measure, ours, oracle in (("TTFT", form.ttft_s, served.ttft_s), ("TPOT", form.tpot_s, served.tpot_s)):
        found[measure][0].append(float(ours))
        found[measure][1].append(float(oracle.mean()))
    return served


def kv_bound_errors(short: bool) -> Iterator[Row]:
    """Fewer KV slots than clients, under both rules of admission; sizes drawn at random."""
    for name, reserve in (("reserved", True), ("on demand", False)):
        rng = np.random.default_rng(0)
        found: dict[str, tuple[list[float], list[float]]] = {"TTFT": ([], []), "TPOT": ([], [])}
        preemptions = []
        for speed, first in product(SPEEDS.values(), (False, True)):
            for _ in range(8 if short else 40):
                isl, osl = (int(size) for size in 2 ** rng.uniform([7, 5], [13, 11]))
                clients = int(2 ** rng.uniform(3, 9))
                slots = max(1.0, rng.uniform(0.1, 0.9) * clients)
                rules = Scheduler(prefill_first=first, reserve_full=reserve, kv_capacity_tokens=slots * (isl + osl))
                served = closed_pair(found, step_times(speed), rules, isl, osl, clients, varied=True)
                preemptions.append(served.preemptions / len(served.arrival_s))
        for measure, target in (("TTFT", 15.0), ("TPOT", 5.0)):
            yield from error_rows(f"closed, KV-bound, {name}", measure, *found[measure], target)
        yield Row(
            f"closed, KV-bound, {name}", "preemptions", float(np.mean(preemptions)), None, "", "/request", "lower"
        )


def open_loop_errors(short: bool) -> Iterator[Row]:
    loads = (0.4, 0.8) if short else (0.2, 0.4, 0.6, 0.75, 0.85, 0.95)
    shapes = ((1024, 128), (1024, 1024)) if short else ((128, 1024), (1024, 128), (1024, 1024), (8192, 1024))
    count = 5000 if short else 20000
    for scheduler, first in SCHEDULERS.items():
        for load in loads:
            names = [f"{measure} P{100 * p:.0f}" for measure in ("TTFT", "TPOT") for p in PERCENTILES]
            names += ["TTFT mean", "TPOT mean"]
            found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
            for at, (speed, (isl, osl), slots) in enumerate(product(("8b", "slow"), shapes, (16, 64, 256))):
                rng = np.random.default_rng((at, int(100 * load)))
                times = step_times(SPEEDS[speed])
                rules = Scheduler(prefill_first=first, kv_capacity_tokens=slots * (isl + osl))
                inputs, outputs = drawn(isl, True, count, rng), drawn(osl, True, count, rng)
                sizes = {"input_tokens": inputs.mean(), "output_tokens": outputs.mean(), "length_spread": VARIED}
                rate = load * float(open_loop(times, rules, rate_per_s=1e-9, **sizes).max_rate_per_s)
                form = open_loop(times, rules, rate_per_s=rate, **sizes)
                arrival = poisson_arrivals(rate, count, rng)
                served = simulate_open_loop(times, rules, inputs, outputs, arrival_s=arrival)
                late = slice(count // 5, None)  # after the start
                ttft, tpot = served.ttft_s[late], served.tpot_s[late]
                for p in PERCENTILES:
                    for measure, ours, oracle in (("TTFT", form.ttft_s(p), ttft), ("TPOT", form.tpot_s(p), tpot)):
                        found[f"{measure} P{100 * p:.0f}"][0].append(float(ours))
                        found[f"{measure} P{100 * p:.0f}"][1].append(float(np.quantile(oracle, p)))
                for measure, ours, oracle in (("TTFT", form.ttft_mean_s, ttft), ("TPOT", form.tpot_mean_s, tpot)):
                    found[f"{measure} mean"][0].append(float(ours))
                    found[f"{measure} mean"][1].append(float(oracle.mean()))
            target = 25.0 if load <= 0.85 else None
            for name in names:
                error = np.abs(np.array(found[name][0]) / np.array(found[name][1]) - 1)
                case = f"open, {scheduler}, load {load}"
                yield Row(case, f"{name}, mean |error|", 100 * float(error.mean()), target, "target", "%", "lower")


def disaggregated_errors(short: bool) -> Iterator[Row]:
    """Two simulated stages with a first-come link between them, against the closed form."""
    count, kv_bytes_per_token, bandwidth = 4000 if short else 12000, 1.3e5, 25e9
    for load in (0.3, 0.6, 0.8):
        found: dict[str, tuple[list[float], list[float]]] = {f"TTFT P{100 * p:.0f}": ([], []) for p in PERCENTILES}
        found |= {"TTFT mean": ([], []), "TPOT mean": ([], [])}
        shapes = ((1024, 512, 1, 1), (4096, 512, 3, 1), (512, 128, 2, 2))
        for at, (speed, (isl, osl, x, y)) in enumerate(product(("8b", "70b"), shapes)):
            times, rules = step_times(SPEEDS[speed]), Scheduler(kv_capacity_tokens=128 * (isl + osl))
            fixed = {
                "input_tokens": isl, "output_tokens": osl, "prefill_workers": x, "decode_workers": y,
                "kv_bytes": isl * kv_bytes_per_token, "bandwidth_bytes_per_s": bandwidth,
            }  # fmt: skip
            rate = load * float(disaggregated(times, rules, times, rules, rate_per_s=1e-9, **fixed).loop.max_rate_per_s)
            form = disaggregated(times, rules, times, rules, rate_per_s=rate, **fixed).loop
            rng = np.random.default_rng((at, int(100 * load)))
            sending = isl * kv_bytes_per_token / bandwidth
            ttft, tpot = two_stages(times, rules, isl, osl, (x, y), sending, poisson_arrivals(rate, count, rng), rng)
            for p in PERCENTILES:
                found[f"TTFT P{100 * p:.0f}"][0].append(float(form.ttft_s(p)))
                found[f"TTFT P{100 * p:.0f}"][1].append(float(np.quantile(ttft, p)))
            for name, ours, oracle in (("TTFT", form.ttft_mean_s, ttft), ("TPOT", form.tpot_mean_s, tpot)):
                found[f"{name} mean"][0].append(float(ours))
                found[f"{name} mean"][1].append(float(oracle.mean()))
        for name, (ours, oracle) in found.items():
            error = np.abs(np.array(ours) / np.array(oracle) - 1)
            mean = 100 * float(error.mean())
            yield Row(f"disaggregated, load {load}", f"{name}, mean |error|", mean, 25.0, "target", "%", "lower")


def two_stages(
    times: StepTimes,
    rules: Scheduler,
    isl: int,
    osl: int,
    workers: tuple[int, int],
    sending_s: float,
    arrival: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """TTFT and TPOT of simulated prefill workers, a link of each, and decode workers; after the start."""
    count = len(arrival)
    ready, first, finish = np.empty(count), np.empty(count), np.empty(count)
    side = rng.integers(0, workers[0], count)
    for worker in range(workers[0]):
        mine = np.flatnonzero(side == worker)
        ones = np.ones(len(mine), dtype=np.int64)
        prompts = simulate_open_loop(times, prefill_scheduler(rules), isl * ones, ones, arrival_s=arrival[mine])
        free = 0.0
        for request, done in zip(mine, prompts.first_token_s, strict=True):
            free = max(free, done) + sending_s
            ready[request] = free
    side = rng.integers(0, workers[1], count)
    decode_times, decode_rules = decode_only(times, rules)
    for worker in range(workers[1]):
        mine = np.flatnonzero(side == worker)
        mine = mine[np.argsort(ready[mine], kind="stable")]
        ones = np.ones(len(mine), dtype=np.int64)
        served = simulate_open_loop(decode_times, decode_rules, isl * ones, osl * ones, arrival_s=ready[mine])
        first[mine], finish[mine] = served.first_token_s, served.finish_s
    late = slice(count // 5, None)
    return (first - arrival)[late], ((finish - first) / (osl - 1))[late]


def speed(short: bool) -> Iterator[Row]:
    chunk, repeats = 8192, 3 if short else 10
    rng = np.random.default_rng(0)
    sizes = {"input_tokens": rng.integers(100, 8000, chunk), "output_tokens": rng.integers(100, 1000, chunk)}
    scaled = tuple(value * rng.uniform(0.5, 1.5, chunk) for value in SPEEDS["8b"])
    times, clients = step_times(scaled), rng.integers(1, 300, chunk)
    for scheduler, first in SCHEDULERS.items():
        rules = Scheduler(prefill_first=first, kv_capacity_tokens=4e5)
        actions = {
            "closed loop": partial(closed_loop, clients=clients, length_spread=VARIED),
            "open loop": partial(open_loop, rate_per_s=0.1),
            "highest rate under an SLO": partial(max_rate_under_slo, ttft_s=1.0, tpot_s=0.03),
        }
        for name, action in actions.items():
            call = partial(action, times, rules, **sizes)
            call()
            rate = chunk / seconds(call, repeats) / 1e6
            yield Row(f"speed, {scheduler}", name, rate, None, "", "M plans/s", "higher")
    count = 2000
    inputs, outputs = uniform_lengths(800, 1000, count, rng), uniform_lengths(800, 1000, count, rng)
    rules = Scheduler()
    one = seconds(lambda: simulate_closed_loop(step_times(SPEEDS["8b"]), rules, inputs, outputs, clients=200), repeats)
    yield Row("speed, simulation", "requests of 1000 tokens", count / one / 1e3, None, "", "k/s", "higher")


CASES = {
    "closed_loop": closed_loop_errors,
    "kv_bound": kv_bound_errors,
    "open_loop": open_loop_errors,
    "disaggregated": disaggregated_errors,
    "speed": speed,
}


def rows(short: bool) -> Iterator[Row]:
    """All rows, for benchmarks that include this one."""
    for case in CASES.values():
        yield from case(short)


if __name__ == "__main__":
    main("queueing", CASES)
