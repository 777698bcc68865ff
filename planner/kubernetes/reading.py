"""Reading untrusted Kubernetes objects: typed access to nested dictionaries, every mistake noted at its path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from planner.errors import DescriptionError, Finding
from planner.files import MAX_FINDINGS
from planner.kubernetes.quantity import parse_amount

FoundT = TypeVar("FoundT")
_EMPTY: Mapping[str, Any] = {}


class Notes:
    """What is wrong with the files (raised together), and what is right but not modelled (told with the result)."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.left_out: Counter[str] = Counter()

    def refuse(self) -> None:
        """Raise DescriptionError with all mistakes, if there are any."""
        if self.findings:
            more = len(self.findings) - MAX_FINDINGS
            shown = self.findings[:MAX_FINDINGS]
            raise DescriptionError(
                [*shown, Finding(shown[-1].path, f"and {more} more problems")] if more > 0 else shown
            )

    @property
    def not_modelled(self) -> tuple[str, ...]:
        """Once each, with the number of objects."""
        return tuple(
            f"{what} ({count} object{'s' if count > 1 else ''})" for what, count in sorted(self.left_out.items())
        )


class Value:
    """A value inside an object, where it is, and what is collected about it. Wrong types read as absent, once told."""

    __slots__ = ("notes", "path", "place", "value")

    def __init__(self, value: Any, place: str, path: str, notes: Notes) -> None:
        self.value, self.place, self.path, self.notes = value, place, path, notes

    def wrong(self, message: str) -> None:
        """Note a mistake here."""
        self.notes.findings.append(Finding(self.place, f"{self.path}: {message}" if self.path else message))

    def not_modelled(self, what: str) -> None:
        """Note what a plan does not heed."""
        self.notes.left_out[what] += 1

    def at(self, *keys: str) -> Value:
        """The value below, None where it is absent."""
        value, path = self.value, self.path
        for key in keys:
            if value is not None and not isinstance(value, dict):
                Value(value, self.place, path, self.notes).wrong(f"must be a mapping, got {str(value)[:40]!r}")
                value = None
            value = None if value is None else value.get(key)
            path = f"{path}.{key}" if path else key
        return Value(value, self.place, path, self.notes)

    def __bool__(self) -> bool:
        return self.value is not None

    def mapping(self) -> Iterator[tuple[str, Value]]:
        """Entries of a mapping, none where it is absent."""
        if self.value is None:
            return
        if not isinstance(self.value, dict):
            self.wrong(f"must be a mapping, got {str(self.value)[:40]!r}")
            return
        for key, value in self.value.items():
            yield str(key), Value(value, self.place, f"{self.path}.{key}", self.notes)

    def items(self) -> Iterator[Value]:
        """Items of a list, none where it is absent."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            self.wrong(f"must be a list, got {str(self.value)[:40]!r}")
            return
        for index, value in enumerate(self.value):
            yield Value(value, self.place, f"{self.path}[{index}]", self.notes)

    def text(self, default: str = "") -> str:
        """A string."""
        if self.value is None:
            return default
        if not isinstance(self.value, str) or len(self.value) > 10_000:
            self.wrong(f"must be a text, got {str(self.value)[:40]!r}")
            return default
        return self.value

    def one_of(self, choices: tuple[str, ...], default: str) -> str:
        """A string out of a few."""
        found = self.text(default)
        if found not in choices:
            self.wrong(f"must be one of {', '.join(choices)}, got {found[:40]!r}")
            return default
        return found

    def integer(self, default: int, least: int = 0, most: int = 2**31 - 1) -> int:
        """A whole number within bounds; also as text, as annotations have it."""
        value = self.value
        if value is None:
            return default
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 12:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.wrong(f"must be a whole number from {least} to {most}, got {str(self.value)[:40]!r}")
            return default
        return value

    def flag(self) -> bool:
        """True or false, false where it is absent."""
        if self.value not in (None, True, False):
            self.wrong(f"must be true or false, got {str(self.value)[:40]!r}")
        return self.value is True

    def labels(self) -> dict[str, str]:
        """A mapping of texts."""
        return {key: value.text() for key, value in self.mapping()}

    def amount(self, resource: str) -> int:
        """A quantity of a resource, in the snapshot's unit; 0 where it cannot be read."""
        # Devices and other extended resources, which have a domain in their name, come in whole numbers.
        if "/" in resource and not resource.startswith("hugepages-"):
            thousandths = self.take(lambda: parse_amount(self.value, 1000), 0)
            if thousandths % 1000:
                self.wrong(f"must be a whole number, got {str(self.value)[:40]!r}")
            return thousandths // 1000
        return self.take(lambda: parse_amount(self.value, 1000 if resource == "cpu" else 1), 0)

    def amounts(self) -> dict[str, int]:
        """A resource list."""
        return {resource: value.amount(resource) for resource, value in self.mapping()}

    def take(self, read: Callable[[], FoundT], default: FoundT) -> FoundT:
        """What `read` returns; its ValueError is a mistake here."""
        try:
            return read()
        except ValueError as error:
            self.wrong(str(error))
            return default
