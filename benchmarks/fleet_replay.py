"""Fleets planned for recorded traces, then served request by request: the share that keeps the limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import fleet_instances as instances
from benchmarks.common import Row, data_folder
from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.replay import replay
from formulations.outcome import SolveOptions
from planner import catalog
from planner.descriptions.fleet import FleetInstance
from planner.readers.request_traces import read_request_trace
from planner.request_trace import headroom, to_demand

#: Limits by trace, and the percentile that must keep them. Mooncake's prompts go to 126,000 tokens: looser ones.
LIMITS = {
    "azure2023_conv": {"ttft_s": 2.0, "tpot_s": 0.05, "percentile": 90},
    "azure2023_code": {"ttft_s": 2.0, "tpot_s": 0.05, "percentile": 90},
    "mooncake_conversation": {"ttft_s": 30.0, "tpot_s": 0.1, "percentile": 90},
}
#: Traces are sped up by this much: one hour of them is served by a GPU or two.
FASTER = 8.0
#: Share of 10 s windows that the headroom covers; the default of `gpuplan import trace`.
COVERED = 0.95


def replayed(short: bool) -> Iterator[Row]:
    """Plans for three traces on single GPUs, simulated on the trace they were made for."""
    offers = [
        {"name": name, "device": device, "price_usd_per_hour": instances.gpu_prices()[name]}
        for name, device in instances.GPUS.items()
    ]
    for name, limits in list(LIMITS.items())[: 1 if short else None]:
        trace = read_request_trace(data_folder("fleet") / f"{name}.csv")
        trace = replace(trace, arrival_s=trace.arrival_s / FASTER)
        counted = to_demand(trace)
        asked = [
            {"model": "8b", "input_tokens": int(prompt), "output_tokens": int(output), "rate_per_s": float(rate)}
            for prompt, output, rate in zip(
                counted.input_tokens, counted.output_tokens, counted.rates_per_s[:, 0], strict=True
            )
        ]
        free = headroom(trace, COVERED)
        instance = FleetInstance.model_validate(
            {"name": name, "slo": limits, "offers": offers, "models": [{"name": "8b", "model": instances.LLAMA_8B}],
             "demand": asked, "headroom": free}
        )  # fmt: skip
        problem = read_problem(instance)
        plan = solve(GPU_FLEET, problem, SolveOptions(time_limit_s=30.0, relative_gap=1e-3)).plan
        assert plan is not None
        specs = {"8b": catalog.model(instances.LLAMA_8B)}
        (met,) = replay(instance, specs, problem, plan, {"8b": trace})
        case = f"replay, {name} x{FASTER:g}"
        fleet = " + ".join(f"{row.count} {row.offer}" for row in plan.periods[0].allocation)
        yield Row(case, "cost", plan.periods[0].cost_usd_per_hour, None, fleet, "USD/h", "lower")
        yield Row(case, "requests within both limits", met.attainment, 0.9, f"asked, headroom {free:.2f}", "fraction",
                  "higher")  # fmt: skip
        yield Row(case, "p90 TTFT", met.of(met.ttft_s), limits["ttft_s"], "limit", "s", "lower")
        yield Row(case, "p90 TPOT", met.of(met.tpot_s), limits["tpot_s"], "limit", "s", "lower")
        yield Row(case, "violations", len(met.violations()), 0, "none", "count", "lower")
