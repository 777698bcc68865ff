"""Split roles with what else a fleet may ask for: zones, hours in order, power; by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import counts, does, offers, problem, profile, random_problem, run

from formulations.gpu_fleet import search as search_module
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.insight import binding
from formulations.gpu_fleet.problem import FleetProblem
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan

#: 100 tokens of a prompt, 1000 bytes each: 1e5 bytes a request.
MODELS = [{"name": "m", "kv_bytes_per_token": 1000}]
SERVED = [does("big", "prefill", 10.0), does("small", "decode", 2.0)]


def split(rate: float | list[float] = 10.0, small: dict[str, Any] | None = None, **limits: Any) -> FleetProblem:
    """`big` ($4) prefills 10/s; `small` ($1) decodes 2/s."""
    rows = offers(big={"price": 4.0, "watts": 100}, small={"price": 1.0, "watts": 100, **(small or {})})
    return problem(rows, rate, SERVED, models=MODELS, **limits)


def solved(made: FleetProblem, total: float) -> FleetPlan:
    outcome = run(made)
    assert outcome.status == "optimal", outcome.reasons
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(total)
    assert outcome.plan is not None
    return outcome.plan


def zoned(link: float | None) -> FleetProblem:
    """4/s, two zones of one region, a third in another. p and q prefill 4/s, d and e decode 2/s, w does 4/s whole."""
    rows = offers(
        p={"price": 3.0, "zone": "z1", "region": "east"},
        q={"price": 3.0, "zone": "z2", "region": "east"},
        d={"price": 1.0, "zone": "z1", "region": "east"},
        e={"price": 1.0, "zone": "z3", "region": "west"},
        w={"price": 5.0, "zone": "z2", "region": "east"},
    )
    served = [
        does("p", "prefill", 4.0),
        does("q", "prefill", 4.0),
        does("d", "decode", 2.0),
        does("e", "decode", 2.0),
        profile("w", 4.0),
    ]
    links = [] if link is None else [{"from_region": "east", "to_region": "west", "bytes_per_s": link}]
    return problem(rows, 4.0, served, models=MODELS, links=links, spare_zones=1)


def test_a_zone_is_lost_with_all_its_roles() -> None:
    """z1 lost: q and two e, if the link carries 4/s = 4e5 bytes/s, or w. z2 lost: p and two d or e. z3: z1 with z2.

    Joined: p, q, 2 d, 2 e = 6 + 2 + 2 = 10; or w with p and 2 d = 10, which needs no link. At 2e5 bytes/s: w again.
    """
    for link in (4e5, 2e5, None):
        plan = solved(zoned(link), 10.0)
        for survival in plan.periods[0].survival:
            served = dict.fromkeys(("prefill", "decode", "both"), 0.0)
            for row in survival.assignment:
                served[row.role] += row.fraction
            assert served["prefill"] + served["both"] == pytest.approx(1)
            assert sum(flow.fraction for flow in survival.flows) == pytest.approx(served["prefill"])


def test_links_carry_what_a_lost_zone_leaves() -> None:
    """Without w: p, q, 2 d, 2 e = 10 over 4e5 bytes/s; over 2e5 z1 cannot be lost."""

    def without_w(link: float) -> FleetProblem:
        made = zoned(link)
        return replace(made, most=np.where(np.array(made.offer_names) == "w", 0.0, made.most))

    assert counts(solved(without_w(4e5), 10.0)) == {"p": 1, "q": 1, "d": 2, "e": 2}
    outcome = run(without_w(2e5))
    assert outcome.status == "infeasible"
    assert "raise the bandwidth of east to west" in outcome.relaxations


def test_flows_after_the_loss_of_a_zone_are_checked() -> None:
    made = replace(zoned(4e5), most=np.array([9.0, 9.0, 9.0, 9.0, 0.0]))
    plan = solved(made, 10.0)
    period = plan.periods[0]
    survival = tuple(one.model_copy(update={"flows": one.flows[:0]}) for one in period.survival)
    broken = plan.model_copy(update={"periods": (period.model_copy(update={"survival": survival}),)})
    assert {one.rule for one in check(made, broken)} == {"flow"}


@pytest.mark.parametrize("many", [0, 1000])
def test_starts_of_decoding_replicas(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """4, 8, 4/s: big in all hours, small 2, 4, 2; with one start an hour 3, 4, 2. Each start is $0.6.

    Free: rent 12 + 8, two starts of $0.6: 21.2 / 3. One start an hour: 12 + 9 and one start: 21.6 / 3.
    """
    monkeypatch.setattr(search_module, "MANY_PERIODS", many)
    for limits, total in (({}, 21.2 / 3), ({"max_starts": 1}, 21.6 / 3)):
        outcome = run(split([4.0, 8.0, 4.0], {"start_cost_usd": 0.6}, **limits))
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(total)
        assert outcome.bound is not None
        assert outcome.bound.value <= total + 1e-6


def test_slack_of_each_role() -> None:
    """As in `pools`: beta = z sqrt(w / W); prefill w = 0.1 s, decode w = 0.5 s; with W = 0.5 z^2 they are 0.447 and 1.

    At 1/s decoding is a load of 0.5: one holds 0.382, two 1.0. Prefilling is a load of 0.1, and one holds 0.64.
    """
    slack = {"window_s": 0.5 * 1.6448536269514722**2, "quantile": 0.95}
    assert counts(solved(split(1.0, pool_slack=slack), 6.0)) == {"big": 1, "small": 2}
    assert counts(solved(split(1.0), 5.0)) == {"big": 1, "small": 1}


def test_power_is_that_of_all_roles() -> None:
    """Six instances of 100 W at half draw are 300 W: no more fit, with a tenth left free, into 333 W."""
    made = split(max_watts=334, power={"draw": 0.5, "margin": 0.1})
    assert counts(solved(made, 9.0)) == {"big": 1, "small": 5}
    assert run(split(max_watts=333, power={"draw": 0.5, "margin": 0.1})).status == "infeasible"


def test_a_plan_of_unknown_replicas_is_no_crash() -> None:
    """What they draw is not known, and need not be."""
    made = split(max_watts=400, power={"draw": 0.5, "margin": 0.1})
    plan = solved(made, 9.0)
    changed = plan.model_dump(mode="json")
    changed["periods"][0]["replicas"][0]["gpus"] = 7
    assert {one.rule for one in check(made, FleetPlan.model_validate(changed))} == {"configuration"}
    changed = plan.model_dump(mode="json")
    changed["periods"][0]["assignment"][0]["input_tokens"] = 7
    assert {one.rule for one in check(made, FleetPlan.model_validate(changed))} == {"assignment", "summary"}


def test_spot_is_not_told_full_because_two_stages_are_on_it() -> None:
    """3 of 10/s prefill and 3 of 10/s decode on spot: 30 % of each stage, and the limit of 40 % is not reached."""
    rows = offers(big=4.0, small=1.0, spot={"price": 3.0, "market": "spot", "max_count": 1, "min_count": 1})
    served = [*SERVED, does("spot", "prefill", 3.0), does("spot", "decode", 3.0)]
    made = problem(rows, 10.0, served, models=MODELS, max_spot_share=0.4)
    plan = run(made).plan
    assert plan is not None
    assert "max_spot_share" not in {limit.name for limit in binding(made, plan)}


def test_unserved_hours_with_starts() -> None:
    """At most two, 1, 3, 1/s: 1/s is left of the second hour; one start of $0.5 in three hours: (4 + 0.5) / 3."""
    rows = offers(a={"price": 1.0, "max_count": 2, "start_cost_usd": 0.5})
    made = problem(rows, [1.0, 3.0, 1.0], {"a": 1.0}, unserved="by_priority")
    plan = solved(made, 1.5)
    assert [tier.value for tier in plan.tiers] == pytest.approx([1 / 3, 1.5])


@pytest.mark.parametrize("seed", range(300, 306))
def test_unserved_with_slack_and_zones(seed: int) -> None:
    """Where all can be served nothing changes; and else something is left out, with a reason."""
    plain = random_problem(seed, zones=2, pool_slack={"window_s": 4.0, "quantile": 0.9})
    without, outcome = run(plain, "scip"), run(replace(plain, leave_unserved=True), "scip")
    if without.objective is not None:
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(without.objective.total, rel=1e-6)
    elif outcome.plan is not None:
        assert any(row.limits for period in outcome.plan.periods for row in period.unserved)


@pytest.mark.parametrize("method", ["melange-1", "cp-sat"])
def test_slices_refuse_a_cap_by_draw(method: str) -> None:
    made = problem(offers(a={"price": 1.0, "watts": 100}), 2.0, {"a": 1.0}, max_watts=200, power={"draw": 0.5})
    with pytest.raises(OptionError, match="cannot express power"):
        run(made, method)
