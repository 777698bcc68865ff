"""Watts, joules and dollars of one serving worker under one load."""

from __future__ import annotations

from collections.abc import Iterator

from planner.cost.energy import gpu_power_w, joules_per_token, usd_per_million_tokens
from planner.cost.serving.coefficients import PREFILL_PARTS
from planner.cost.serving.judge import Load
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.verdict import Metric


def economics(
    model: ServingModel,
    index: int,
    load: Load,
    price_usd_per_gpu_hour: float | None = None,
    output_tokens_per_s: float | None = None,
) -> Iterator[Metric]:
    """Power of a GPU and energy of an output token where the device's power is known, and its price where one is given.

    A worker of a closed loop is never idle: it prefills for the share of time that prompts take, its own and those of
    others, and decodes for the rest. One that makes fewer `output_tokens_per_s` than that is idle in proportion. Only
    output tokens are counted; what their prompts cost is in them.
    """
    worker = model.workers[index]
    plans = ServingPlans.of([index], load.concurrency, load.input_tokens, load.output_tokens)
    found = model.predict(plans)
    most = float(found.output_tokens_per_s[0])
    rate = most if output_tokens_per_s is None else output_tokens_per_s
    if worker.device.power_w is not None:
        parts = {name: float(values[0]) for name, values in model.parts(plans).items()}
        of_others = sum(parts[name] for name in PREFILL_PARTS) / sum(parts.values())
        own, decode = float(model.first_token_parts(plans)["alone"][0]), float(found.tpot_s[0]) * load.output_tokens
        prefill = (own + of_others * decode) / (own + decode)
        busy = min(1.0, rate / most)
        power = float(gpu_power_w(worker.device.power_w, busy * prefill, busy * (1 - prefill)))
        energy = float(joules_per_token(power * worker.num_gpus, rate))
        yield Metric(name="gpu_power_w", value=power, unit="W", source="modelled")
        yield Metric(name="joules_per_output_token", value=energy, unit="J", source="modelled")
    if price_usd_per_gpu_hour is not None:
        price = float(usd_per_million_tokens(price_usd_per_gpu_hour * worker.num_gpus, rate))
        yield Metric(name="usd_per_million_output_tokens", value=price, unit="USD", source="modelled")
