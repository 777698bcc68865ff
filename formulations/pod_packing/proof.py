"""What a search knows of each tier, told in the plan and in the result."""

from __future__ import annotations

from collections.abc import Sequence

from formulations.outcome import Bound, SearchResult, Status, Stop
from formulations.pod_packing.objective import total
from formulations.pod_packing.problem import Aim, PodsProblem
from planner.pods_plan import PodsPlan, Tier


def in_units(aim: Aim, value: int) -> float:
    """A search's whole number in the aim's unit: sums of its weight, or millionths of cost."""
    return value * aim.scale if aim.sense == "most" else value / 1e6


def concluded(
    problem: PodsProblem,
    plan: PodsPlan,
    reached: Sequence[int],
    bounds: Sequence[int],
    stop: Stop | None,
    *,
    argument: str,
    solver: str,
    version: str,
    build_s: float,
) -> SearchResult[PodsPlan]:
    """The result of a plan that reaches so much of each aim, where no plan can pass the bounds (see `Tier`).

    stop : what cut the search off, None where it came to its own end.
    """
    values = [in_units(aim, value) for aim, value in zip(problem.aims, reached, strict=True)]
    known = [in_units(aim, bound) for aim, bound in zip(problem.aims, bounds, strict=True)]
    tiers = []
    for aim, value, bound in zip(problem.aims, values, known, strict=True):
        proven = abs(bound - value) <= 1e-9 * max(1.0, abs(value))
        gap = 0.0 if proven else abs(bound - value) / max(abs(bound), abs(value), 1e-12)
        tiers.append(
            Tier(
                name=aim.name, unit=aim.unit, sense=aim.sense, value=value, bound=bound, gap=gap, proven=proven,
            )
        )  # fmt: skip
    done = all(tier.proven for tier in tiers)
    # Tiers after one that is not proven may do better when it does: they count as if nothing were left out.
    first = len(tiers) if done else [tier.proven for tier in tiers].index(False) + 1
    hopes = [*known[:first], *(problem.offered(aim) * aim.scale for aim in problem.aims[first:])]
    return SearchResult(
        status=Status.OPTIMAL if done else Status.FEASIBLE,
        stop=Stop.PROOF if done else stop or Stop.HEURISTIC,
        plan=plan.model_copy(update={"tiers": tuple(tiers)}),
        solver=solver,
        solver_version=version,
        claimed=total(problem, values),
        bound=Bound(value=total(problem, hopes), name=argument),
        build_s=build_s,
    )
