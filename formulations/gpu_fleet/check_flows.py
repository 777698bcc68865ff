"""What split roles hand to one another: flows that match what each role does, over links and networks with room."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import Rows
from formulations.gpu_fleet.stages import HANDOVERS
from planner.cost.verdict import Violation
from planner.fleet_plan import Period, Survival

#: Relative overload and missing shares that are rounding of a solver (its feasibility tolerance is 1e-6).
ROUNDING = 1e-5

#: Handover, model, tokens in and out, region.
End = tuple[str, str, int, int, str | None]


def broken(rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None) -> Violation:
    """A rule that a plan breaks."""
    return Violation(
        rule=rule,
        subject=subject,
        message=message,
        amount=None if amount is None else float(amount),
        limit=None if limit is None else float(limit),
    )


def check_flows(problem: FleetProblem, index: int, part: Period | Survival, where: str) -> Iterator[Violation]:
    """Broken rules of the flows of a period, or of what is left after a loss."""
    known = Rows(problem)
    region = {
        name: problem.site_names[problem.site_of_pool[pool]]
        for name, pool in zip(problem.offer_names, problem.pool_of_offer, strict=True)
    }
    need = problem.needed(index)
    sent: dict[End, float] = defaultdict(float)
    taken: dict[End, float] = defaultdict(float)
    network: dict[tuple[str, str, int, str, str], float] = defaultdict(float)
    for row in part.assignment:
        bucket = known.bucket(row)
        for number, kind in enumerate(HANDOVERS):
            for roles, ends in ((kind.senders, sent), (kind.receivers, taken)):
                if row.role in roles:
                    ends[kind.name, row.model, row.input_tokens, row.output_tokens, region[row.offer]] += row.fraction
                    carried = need[bucket] * row.fraction * problem.handed_bytes[number, bucket]
                    side = "sends" if ends is sent else "takes"
                    network[row.offer, row.model, row.gpus, row.role, f"{side} {kind.name}"] += float(carried)
    links: Counter[tuple[str | None, str | None]] = Counter()
    for flow in part.flows:
        regions_known = flow.from_region in problem.site_names and flow.to_region in problem.site_names
        if not (known.has_bucket(flow) and regions_known):
            yield broken("flow", flow.model, f"{where}: a flow of {flow.model} from {flow.from_region} is unknown")
            return
        bucket = known.bucket(flow)
        size = flow.model, flow.input_tokens, flow.output_tokens
        sent[flow.handover, *size, flow.from_region] -= flow.fraction
        taken[flow.handover, *size, flow.to_region] -= flow.fraction
        number = [kind.name for kind in HANDOVERS].index(flow.handover)
        each = float(problem.handed_bytes[number, bucket])
        links[flow.from_region, flow.to_region] += need[bucket] * flow.fraction * each
        value = float(problem.rate[index, bucket]) * flow.fraction * each
        if flow.bytes_per_s is not None and not abs(flow.bytes_per_s - value) <= ROUNDING * max(1.0, value):
            yield broken("flow", flow.model, f"{where}: {flow.bytes_per_s:.9g} bytes/s are told, it is {value:.9g}")
    for ends, verb in ((sent, "sends"), (taken, "takes")):
        for (name, model, *tokens, place), left in ends.items():
            if abs(left) > ROUNDING:
                text = f"{where}: what {place} {verb} of {model} {tokens[0]}/{tokens[1]} ({name}) and its flows differ"
                yield broken("flow", model, f"{text} by {left:.4%}", left, 0.0)
    for (start, end), used in links.items():
        most = problem.link_bytes_per_s[problem.site_names.index(start), problem.site_names.index(end)]
        if most == 0:
            yield broken("link", f"{start} to {end}", f"{where}: {start} and {end} are not joined")
        elif used > most * (1 + ROUNDING):
            message = f"{where}: {used:.4g} bytes/s go from {start} to {end}, the link has {most:.4g}"
            yield broken("link", f"{start} to {end}", message, used, float(most))
    yield from _network(problem, part, where, network)


def _network(
    problem: FleetProblem, part: Period | Survival, where: str, used: dict[tuple[str, str, int, str, str], float]
) -> Iterator[Violation]:
    """Replicas send and take no more than their GPUs' share of the network."""
    have: Counter[tuple[str, str, int, str]] = Counter()
    for row in part.replicas:
        have[row.offer, row.model, row.gpus, row.role] += row.count
    for (offer, model, gpus, role, what), need in used.items():
        pool = problem.pool_of_offer[problem.offer_names.index(offer)]
        each = problem.network_bytes_per_s[pool]
        if np.isinf(each):
            continue
        room = float(problem.availability[pool] * each * gpus * have[offer, model, gpus, role])
        if need > room * (1 + ROUNDING):
            message = f"{where}: {model} on {offer} {what} at {need:.4g} bytes/s, its network has {room:.4g}"
            yield broken("network", offer, message, need, room)
