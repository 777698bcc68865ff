"""What a fleet's workbook shows beyond the instance and its plan: what the cost model and further solves say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Position of the demand, offer, GPUs and role of a replica.
Route = tuple[int, str, int, str]


@dataclass(frozen=True, slots=True)
class Scenario:
    """The plan at a multiple of the demand; costs are None where there is no plan, and `reasons` say why."""

    factor: float
    status: str
    usd_per_hour: float | None
    bound_usd_per_hour: float | None
    gap: float | None
    gpus_peak: float | None
    instances: Mapping[str, int]
    reasons: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Margin:
    """A value of the cost model and its limit: memory of a replica, or the latency of a size on it."""

    subject: str
    what: str
    value: float
    limit: float | None
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFacts:
    """throughput : requests/s that one replica serves, of every route of the plan. folder : where paths begin.

    watts_drawn : expected in the fullest hour, where the instance's power goes by that. studied : whether scenarios and
    what limits cost were solved for.
    """

    folder: str = "."
    throughput: Mapping[Route, float] = field(default_factory=dict)
    margins: Sequence[Margin] = ()
    watts_drawn: float | None = None
    scenarios: Sequence[Scenario] = ()
    studied: bool = False
