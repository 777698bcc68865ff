"""What can go wrong, as one tree.

    PlannerError
    ├── DescriptionError      the user's files are wrong: every problem, with file:line:column   (exit code 7)
    ├── RefusedError          a valid request that cannot be honoured as asked                   (exit code 2)
    │   ├── OptionError       an option that the chosen method or solver cannot honour
    │   ├── ExportError       a plan that the chosen format cannot express
    │   └── MissingExtraError an optional package is needed; says which to install
    ├── SolverError           a solver refuses the model or breaks down: our bug or the solver's (exit code 1)
    └── InvalidPlanError      a search returned what its own check rejects: our bug              (exit code 1)

Infeasible is an answer, not an error: see `formulations.outcome.Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PlannerError(Exception):
    """Base of every error raised on purpose."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem in one file. `line` and `column` count from 1; None where the format has no lines."""

    path: str
    message: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = [self.path]
        if self.line is not None:
            place.append(str(self.line))
            if self.column is not None:
                place.append(str(self.column))
        return f"{':'.join(place)}: {self.message}"


class DescriptionError(PlannerError):
    """One or more problems in the files that describe a problem; raised once, with all of them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))

    @classmethod
    def single(cls, path: object, message: str, line: int | None = None, column: int | None = None) -> DescriptionError:
        """The common case of one problem."""
        return cls([Finding(str(path), message, line, column)])


class RefusedError(PlannerError):
    """A request that is well formed but cannot be honoured; the message says why and what to do instead."""


class OptionError(RefusedError):
    """An option that the chosen method or solver cannot honour. Refused, never ignored."""


class ExportError(RefusedError):
    """The plan holds something that the target format cannot express."""


class MissingExtraError(RefusedError):
    """An optional dependency is needed for this; the message names the package to install."""


class SolverError(PlannerError):
    """A solver refuses the model, breaks down or returns unusable numbers; the message quotes it."""


class InvalidPlanError(PlannerError):
    """A search produced a plan that the independent check rejects, or claimed another objective: our bug."""
