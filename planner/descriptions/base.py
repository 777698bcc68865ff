"""The base of every description and plan: frozen, strict, and able to list all of its problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

#: Validation context key: the caller asks `problems()` itself and places each finding at its line and column.
COLLECT_PROBLEMS = "collect_problems"

Problem = tuple[tuple[int | str, ...], str]


class Description(BaseModel):
    """A frozen model that knows no unknown keys. Rules between fields go into `problems`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def problems(self) -> Iterator[Problem]:
        """Yield (location, message) for each rule between fields that is broken."""
        return iter(())

    def all_problems(self) -> Iterator[Problem]:
        """The broken rules of this description and of every description inside it."""
        yield from self.problems()
        for name in type(self).model_fields:
            value = getattr(self, name)
            items = enumerate(value) if isinstance(value, tuple) else [(None, value)]
            for index, item in items:
                if isinstance(item, Description):
                    prefix = (name,) if index is None else (name, index)
                    yield from (((*prefix, *loc), message) for loc, message in item.all_problems())

    @model_validator(mode="after")
    def _refuse_problems(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get(COLLECT_PROBLEMS):
            messages = [f"{'.'.join(map(str, loc))}: {message}" for loc, message in self.problems()]
            if messages:
                raise ValueError("; ".join(messages))
        return self
