"""FleetPlan: which instances to rent, which replicas run on them, and which requests go where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from planner.descriptions.base import Description
from planner.descriptions.fleet import Role

Count = Annotated[int, Field(ge=0, le=10_000_000)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1 + 1e-9)]


class Allocation(Description):
    """Instances of one offer. `model` is null where several models share instances; `role` is both if several roles."""

    offer: str
    model: str | None
    count: Count
    role: Role = "both"


class Replicas(Description):
    """Replicas of one model and size on instances of one offer. worker : which, where a table of workers names them."""

    offer: str
    model: str
    gpus: Annotated[int, Field(ge=1)]
    count: Count
    role: Role = "both"
    worker: str | None = None


class Assignment(Description):
    """Share of the requests of one size that one offer's replicas of `gpus` GPUs serve, or do their role's part of."""

    model: str
    input_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=1)]
    offer: str
    gpus: Annotated[int, Field(ge=1)]
    fraction: Fraction
    role: Role = "both"
    worker: str | None = None


class Flow(Description):
    """Share of the requests of one size whose cache or activations go from one region to another, or stay in it."""

    model: str
    input_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=1)]
    handover: Literal["kv_cache", "activations"]
    from_region: str | None
    to_region: str | None
    fraction: Fraction
    bytes_per_s: Annotated[FiniteFloat | None, Field(description="null where the size of it is not known")]


class Survival(Description):
    """Where requests go when one instance of an offer, or all of a zone, is lost; one of the two is named."""

    lost_offer: str | None = None
    lost_zone: str | None = None
    replicas: tuple[Replicas, ...]
    assignment: tuple[Assignment, ...]
    flows: tuple[Flow, ...] = ()


class Unserved(Description):
    """Requests of one size that are left out, and the limits that keep more from being served."""

    model: str
    input_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=1)]
    priority: int
    fraction: Fraction
    rate_per_s: FiniteFloat
    limits: tuple[str, ...]


class Tier(Description):
    """One goal of several in order: the value reached, and what is proven of it with all earlier ones held."""

    goal: str
    unit: str
    value: FiniteFloat
    bound: FiniteFloat | None
    gap: FiniteFloat | None


class Period(Description):
    """What runs in some hours (indices of the hourly demand; all when there is one constant rate)."""

    hours: tuple[Annotated[int, Field(ge=0)], ...]
    cost_usd_per_hour: FiniteFloat
    allocation: tuple[Allocation, ...]
    replicas: tuple[Replicas, ...]
    assignment: tuple[Assignment, ...]
    survival: tuple[Survival, ...] = ()
    unserved: tuple[Unserved, ...] = ()
    flows: tuple[Flow, ...] = ()


class Relief(Description):
    """What one unit more of a limit would save, of the objective; 0 at least: not told apart from the gap.

    unserved_per_s : by goal, what then stays unserved; where demand is unserved, in place of savings.
    """

    limit: str
    now: FiniteFloat
    relaxed: FiniteFloat
    saves_at_least_usd_per_hour: FiniteFloat | None
    saves_at_most_usd_per_hour: FiniteFloat | None
    unserved_per_s: dict[str, FiniteFloat] | None = None


class Substitute(Description):
    """The cheapest plan found without one offer; instances at most at a time. unserved_per_s : by goal, if anything."""

    offer: str
    status: Literal["optimal", "feasible", "infeasible", "unknown"]
    objective_usd_per_hour: FiniteFloat | None
    extra_usd_per_hour: FiniteFloat | None
    gap: FiniteFloat | None
    instances: dict[str, int]
    unserved_per_s: dict[str, FiniteFloat] | None = None


class Insight(Description):
    """Answers to "what if": limits that bind, relaxed one at a time, and the offer that most money goes to gone."""

    reliefs: tuple[Relief, ...]
    untried: tuple[str, ...] = ()
    without: Substitute


class RentedOffer(Description):
    """What an instance of an offer is, as the instance file says it."""

    device: str
    gpus: Annotated[int, Field(ge=1)]
    region: str | None = None
    zone: str | None = None
    market: Literal["on_demand", "spot", "reserved"] = "on_demand"


class FleetPlan(Description):
    """The fleet of every period. `allocation` and `assignment` are those of the most expensive one.

    cost_usd_per_hour : mean over the hours; changes : instances added (+) or dropped (-) from the current fleet.
    offers : what the rented instances are, by the name of the offer.
    tiers : goals in order, where demand may stay unserved.
    """

    allocation: tuple[Allocation, ...]
    assignment: tuple[Assignment, ...]
    cost_usd_per_hour: FiniteFloat
    periods: tuple[Period, ...]
    changes: dict[str, int] | None = None
    offers: dict[str, RentedOffer] = Field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    insight: Insight | None = None
