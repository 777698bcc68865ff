"""Metric, Violation, Verdict: what the cost model says about a plan."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import FiniteFloat, model_validator

from planner.descriptions.base import Description

#: Where a metric comes from, from most to least trusted.
Source = Literal["measured", "calibrated", "datasheet", "modelled"]


class Metric(Description):
    """One predicted or counted quantity; the unit is an SI symbol, `fraction`, `count` or `ratio`.

    low, high : 80 % of measurements of such predictions lie between them; None where no residuals say so.
    """

    name: str
    value: FiniteFloat
    unit: str
    source: Source
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class Violation(Description):
    """One broken rule or budget: which rule, at what, by how much."""

    rule: str
    subject: str
    message: str
    amount: float | None = None
    limit: float | None = None
    unit: str | None = None


class Verdict(Description):
    """The independent judgement of a plan. `feasible` follows from the violations, whatever is passed."""

    metrics: tuple[Metric, ...] = ()
    violations: tuple[Violation, ...] = ()
    bottleneck: str | None = None
    assumptions: tuple[str, ...] = ()

    feasible: bool = True

    @model_validator(mode="after")
    def _derive_feasible(self) -> Self:
        object.__setattr__(self, "feasible", not self.violations)
        return self

    def metric(self, name: str) -> float:
        """Value of a metric by name; KeyError when there is none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise KeyError(name)
