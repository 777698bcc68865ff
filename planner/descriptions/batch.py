"""The list of jobs that `gpuplan batch` runs: instance files, and values to put over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, JsonValue, ValidationError

from planner.descriptions.base import Description, Problem

#: Points of one sweep, and jobs of one list. More belongs into several lists.
MAX_POINTS = 100_000
MAX_JOBS = 1_000_000

Path = Annotated[str, Field(min_length=1, max_length=4096)]


class ValueRange(Description):
    """Equally spaced values, or with `scale: log` values of equal ratio, both ends included."""

    first: FiniteFloat
    last: FiniteFloat
    points: Annotated[int, Field(ge=2, le=MAX_POINTS)]
    scale: Literal["linear", "log"] = "linear"

    def problems(self) -> Iterator[Problem]:
        """A logarithm needs positive ends."""
        if self.scale == "log" and min(self.first, self.last) <= 0:
            yield ("scale",), "log needs a first and a last above 0"

    def values(self) -> tuple[float, ...]:
        """All values, ends exact."""
        steps = [place / (self.points - 1) for place in range(1, self.points - 1)]
        if self.scale == "log":
            inner = [self.first * math.exp(step * math.log(self.last / self.first)) for step in steps]
        else:
            inner = [self.first + step * (self.last - self.first) for step in steps]
        return (self.first, *inner, self.last)


class JobEntry(Description):
    """One instance, or each file of a pattern, once for every combination of the swept values.

    A swept key is a path of keys in the instance, as in `slo.ttft_s`; a step into a list is a position, or the `name`
    of an entry as in `offers."p5.4xlarge".max_count`.
    """

    instance: Annotated[Path, Field(description="file or pattern such as night/*.yaml, relative to this file")]
    sweep: Annotated[
        dict[str, JsonValue], Field(description="by key a list of values, or first, last, points and scale")
    ] = Field(default_factory=dict)
    current: Annotated[Path | None, Field(description="plan in force, to replan from")] = None
    move_price: Annotated[
        FiniteFloat | None,
        Field(ge=0, description="one move, in the objective's unit times hours: USD for a fleet"),
    ] = None
    horizon_hours: Annotated[FiniteFloat | None, Field(gt=0, description="how long the new plan will stand")] = None

    def problems(self) -> Iterator[Problem]:
        """Ranges that are none; replanning is asked for as a whole."""
        for key in self.sweep:
            try:
                self.values(key)
            except ValidationError as error:
                for item in error.errors(include_url=False):
                    message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
                    yield ("sweep", key, *item["loc"]), message
            except ValueError as error:
                yield ("sweep", key), str(error)
        given = [key for key in ("current", "move_price", "horizon_hours") if getattr(self, key) is not None]
        if given and len(given) < 3:
            yield (given[0],), "replanning needs current, move_price and horizon_hours"

    def values(self, key: str) -> tuple[JsonValue, ...]:
        """The values of a swept key. Raises ValueError for what is neither a list nor a range."""
        given = self.sweep[key]
        if isinstance(given, dict):
            return ValueRange.model_validate(given).values()
        if not isinstance(given, list) or not 1 <= len(given) <= MAX_POINTS:
            raise ValueError(f"is neither a list of 1 to {MAX_POINTS} values nor first, last and points")
        return tuple(given)


class JobList(Description):
    """All jobs of a batch."""

    jobs: Annotated[tuple[JobEntry, ...], Field(min_length=1, max_length=MAX_JOBS)]
