"""Typed access to the keys of a config.json under all their spellings, with every problem and default collected.

Values come from outside: each is checked for type and range when it is read, a broken one is noted with its place and
replaced by a harmless stand-in, and `refuse` raises once with all problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.errors import DescriptionError, Finding
from planner.files import MAX_FINDINGS, Loc, SourceText

#: Bounds that no model reaches; they keep a mistyped number from asking for absurd counts or long lists.
MAX_LAYERS, MAX_DIMENSION, MAX_EXPERTS, MAX_TOKENS = 1_024, 2**24, 65_536, 2**40


@dataclass(slots=True)
class Notes:
    """What reading one file brings up: problems, defaults that were used, rules that were applied."""

    source: SourceText
    findings: list[Finding] = field(default_factory=list)
    told: set[tuple[Loc, str]] = field(default_factory=set)
    defaulted: dict[str, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)

    def problem(self, loc: Loc, message: str) -> None:
        """One more problem, at its line and column, told once."""
        if len(self.findings) < MAX_FINDINGS and (loc, message) not in self.told:
            self.told.add((loc, message))
            self.findings.append(self.source.finding(loc, message))

    def assume(self, text: str) -> None:
        """One more rule or stand-in, told once."""
        if text not in self.assumptions:
            self.assumptions.append(text)

    def refuse(self) -> None:
        """Raise DescriptionError when there is any problem."""
        if self.findings:
            raise DescriptionError(self.findings)


class Fields:
    """One object of the file. A key that is null counts as missing.

    defaults : what the model class uses for a missing key.
    """

    def __init__(
        self, notes: Notes, values: Mapping[str, Any], loc: Loc = (), defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.notes = notes
        self.values = values
        self.loc = loc
        self.defaults = defaults or {}

    def found(self, *names: str) -> str | None:
        """The first of these spellings that has a value."""
        return next((name for name in names if self.values.get(name) is not None), None)

    def has(self, *names: str) -> bool:
        """Whether one of these spellings has a value, or the class gives it one."""
        return self.found(*names) is not None or any(self.defaults.get(name) is not None for name in names)

    def raw(self, *names: str) -> Any:
        """The value as it stands in the file or in the class's defaults, or None."""
        name = self.found(*names)
        if name is not None:
            return self.values[name]
        for name in names:
            if self.defaults.get(name) is not None:
                self.notes.defaulted[name] = str(self.defaults[name])[:40]
                return self.defaults[name]
        return None

    def integer(
        self, *names: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_DIMENSION, rule: str = ""
    ) -> int:
        """A whole number in [minimum, maximum]; a problem when it is missing without a default.

        rule : where the default comes from, told when it is used.
        """
        value = self.raw(*names)
        if value is None:
            if default is None:
                self.notes.problem(self.loc, f"{' or '.join(names)} is required")
                return minimum
            if rule:
                self.notes.defaulted[names[0]] = f"{default} ({rule})"
            return default
        return self._whole((*self.loc, self.found(*names) or names[0]), value, minimum, maximum)

    def _whole(self, loc: Loc, value: object, minimum: int, maximum: int) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) <= maximum:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.notes.problem(loc, f"needs a whole number, got {_shown(value)}")
            return minimum
        if not minimum <= value <= maximum:
            self.notes.problem(loc, f"is {_shown(value)}, outside {minimum} to {maximum}")
            return minimum
        return value

    def number(self, *names: str, default: float | None = None, minimum: float = 0.0, maximum: float = 1e6) -> float:
        """A number in [minimum, maximum]."""
        value = self.raw(*names)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= maximum:
            found = self.found(*names)
            loc = self.loc if found is None else (*self.loc, found)
            self.notes.problem(loc, f"{names[0]} needs a number from {minimum:g} to {maximum:g}, got {_shown(value)}")
            return minimum
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.notes.problem((*self.loc, self.found(*names) or names[0]), f"needs true or false, got {_shown(value)}")
            return default
        return value

    def text(self, *names: str, default: str = "") -> str:
        """A string."""
        value = self.raw(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            self.notes.problem((*self.loc, self.found(*names) or names[0]), f"needs a string, got {_shown(value)}")
            return default
        return value

    def section(self, *names: str) -> Fields | None:
        """An object inside this one; a problem when it is something else."""
        name = self.found(*names)
        if name is None:
            return None
        value = self.values[name]
        if not isinstance(value, Mapping):
            self.notes.problem((*self.loc, name), f"needs an object, got {_shown(value)}")
            return None
        return Fields(self.notes, value, (*self.loc, name))

    def items(self, *names: str, length: int | None = None, most: int = MAX_LAYERS) -> tuple[Any, ...] | None:
        """A list, or None when it is missing; `length` is how many entries it must have at least (the rest is cut)."""
        name = self.found(*names)
        if name is None:
            return None
        value, loc = self.values[name], (*self.loc, name)
        if not isinstance(value, Sequence) or isinstance(value, str):
            self.notes.problem(loc, f"needs a list, got {_shown(value)}")
            return None
        if len(value) > 2 * most or (length is not None and len(value) < length):
            wanted = f"at most {2 * most}" if length is None else f"{length}"
            self.notes.problem(loc, f"has {len(value)} entries where {wanted} are needed")
            return None
        return tuple(value[:length])

    def integers(
        self, *names: str, length: int | None = None, minimum: int = 0, maximum: int = MAX_DIMENSION
    ) -> tuple[int, ...] | None:
        """A list of whole numbers."""
        values = self.items(*names, length=length)
        if values is None:
            return None
        name = self.found(*names) or names[0]
        return tuple(
            self._whole((*self.loc, name, index), int(value) if isinstance(value, bool) else value, minimum, maximum)
            for index, value in enumerate(values)
        )

    def strings(self, *names: str, length: int | None = None, most: int = MAX_LAYERS) -> tuple[str, ...] | None:
        """A list of strings."""
        values = self.items(*names, length=length, most=most)
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, str):
                name = self.found(*names) or names[0]
                self.notes.problem((*self.loc, name, index), f"needs a string, got {_shown(value)}")
                return None
        return values

    def problem(self, name: str, message: str) -> None:
        """A problem with the value of one key."""
        self.notes.problem((*self.loc, name), message)


def _shown(value: object) -> str:
    """A value for a message, cut; a huge integer is told by its size, because printing it is costly."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return repr(value)[:60]
