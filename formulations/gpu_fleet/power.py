"""What a fleet is expected to draw, where a power cap is filled by that and not by what its boards could draw.

    draw = sum_k idle[k] y[k] + sum_c running[c] z[c] + sum_{d, c} rate[d] x[d, c] joules[d, c]

`share`   every instance draws that share of its watts: idle = share watts, nothing else.
`phases`  GPUs without a replica idle; a replica that runs is counted as decoding all the time, which is the most that a
          small load can make of continuous batching; every request adds its prefill at the prefill draw. Shares of the
          phases are those of `planner.cost.energy`. Rates are those to be ready for, bursts and headroom included.

The cap is kept by the expected draw and a margin: draw <= (1 - margin) max_watts. Draw swings about it. With a standard
deviation of SPREAD of each GPU's board power and CORRELATION between any two, the chance of a moment above the cap is
told: `capping_share`. Not modelled: hosts and cooling beyond an offer's `watts`, and draw after a loss.

Reference: Patel et al., POLCA, arXiv 2308.12908, for power that is oversubscribed and capped in rare cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from formulations.gpu_fleet.problem import Draw, FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.rows import Rows
from formulations.gpu_fleet.stages import ROLES, STAGES
from formulations.gpu_fleet.throughput import Config, replica
from planner.cost.energy import DECODE_SHARE, IDLE_SHARE, PREFILL_SHARE
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import Period
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec

#: Standard deviation of a GPU's draw, of its board power, and what two GPUs have in common of it. Assumed: Splitwise's
#: A100s average 0.41-0.69 and peak at 0.84-1.04 of it, by phase; requests that come together draw together.
SPREAD, CORRELATION = 0.2, 0.3


def prefill_seconds(
    instance: FleetInstance,
    specs: Sequence[ModelSpec],
    devices: Sequence[DeviceKind | None],
    buckets: Sequence[tuple[int, int, int]],
    configs: Sequence[Config],
    coefficients: Coefficients | None,
) -> FloatArray:
    """Seconds that a replica prefills one request alone, [D, C]; devices by pool, buckets (model, input, output).

    0 where its role is another one.
    """
    found = np.zeros((len(buckets), len(configs)))
    for c, config in enumerate(configs):
        device = devices[config.pool]
        own = [(d, i, o) for d, (m, i, o) in enumerate(buckets) if m == config.model]
        if device is None or not own or ROLES[config.role] not in STAGES["prefill"]:
            continue
        place, prompt, output = (np.array(column) for column in zip(*own, strict=True))
        worker = replica(instance.models[config.model], specs[config.model], device, config.gpus)
        plans = ServingPlans.of(0, 1, prompt, output)
        found[place, c] = ServingModel([worker], coefficients).first_token_parts(plans)["alone"]
    return found


def by_share(watts: FloatArray, share: float, num_buckets: int, num_configs: int) -> Draw:
    """Every instance at a share of its watts."""
    return Draw(share * watts, np.zeros(num_configs), np.zeros((num_buckets, num_configs)))


def by_phases(
    watts: FloatArray, gpus: IntArray, pool_of_offer: IntArray, configs: Sequence[Config], prefill_s: FloatArray
) -> Draw:
    """By what runs: watts and gpus of each offer [K]; a pool's GPU is that of its hungriest offer."""
    each = np.array([(watts / gpus)[pool_of_offer == config.pool].max() * config.gpus for config in configs])
    return Draw(
        IDLE_SHARE * watts, (DECODE_SHARE - IDLE_SHARE) * each, (PREFILL_SHARE - DECODE_SHARE) * each * prefill_s
    )


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Of one period, W: expected, what the boards could draw, and the standard deviation."""

    expected: float
    boards: float
    deviation: float

    def above(self, cap: float) -> float:
        """Chance of a moment above a cap."""
        if self.deviation == 0:
            return float(self.expected > cap)
        return 1 - NormalDist(self.expected, self.deviation).cdf(cap)


def drawn(problem: FleetProblem, period: Period) -> Drawn:
    """Draw of a plan's period, from its decisions alone."""
    assert problem.draw is not None
    draw, index = problem.draw, problem.hours.index(period.hours)
    known = Rows(problem)
    expected = boards = variance = 0.0
    for row in period.allocation:
        k = known.offers[row.offer]
        each = problem.watts[k] / problem.gpus[k]
        expected += draw.idle[k] * row.count
        boards += problem.watts[k] * row.count
        variance += (SPREAD * each) ** 2 * problem.gpus[k] * row.count
    needed = problem.needed(index)
    for replicas in period.replicas:
        expected += draw.running[known.config(replicas)] * replicas.count
    for one in period.assignment:
        bucket = known.bucket(one)
        expected += float(needed[bucket]) * one.fraction * draw.joules[bucket, known.config(one)]
    deviation = np.sqrt((1 - CORRELATION) * variance + CORRELATION * (SPREAD * boards) ** 2)
    return Drawn(float(expected), float(boards), float(deviation))
