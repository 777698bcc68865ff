"""What flags say, read all at once: every mistake is told at the flag that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from planner import catalog
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import read_as
from planner.hardware import DeviceKind
from planner.units import parse_quantity

FoundT = TypeVar("FoundT")


class FlagReader:
    """Reads flags and collects what is wrong with them; `refuse` raises it together."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def tell(self, flag: str, message: str) -> None:
        """One mistake."""
        self.findings.append(Finding(flag, message))

    def take(self, flag: str, read: Callable[[], FoundT]) -> FoundT | None:
        """What `read` returns, or None where it raises."""
        try:
            return read()
        except DescriptionError as error:
            self.findings.extend(error.findings)
        except (OptionError, ValueError) as error:
            self.tell(flag, str(error))
        return None

    def device(self, flag: str, name: str) -> DeviceKind | None:
        """An accelerator by name, or from a file that describes one."""
        if Path(name).suffix in (".yaml", ".yml", ".json"):
            return self.take(flag, lambda: read_as(name, DeviceKind))
        return self.take(flag, lambda: catalog.device(name))

    def whole(self, flag: str, value: int | None, *, least: int = 1, most: int) -> None:
        """A whole number within bounds, if given."""
        if value is not None and not least <= value <= most:
            self.tell(flag, f"is {value}, but must be from {least} to {most}")

    def quantity(self, flag: str, text: str | None, units: Mapping[str, float], what: str) -> float | None:
        """A positive quantity in SI units, if given; '30ms' and 0.03 are the same."""
        if text is None:
            return None
        value = self.take(flag, lambda: parse_quantity(text, units, what))
        if value is not None and value <= 0:
            self.tell(flag, f"{what} must be above 0 (got {text!r})")
        return value

    def refuse(self) -> None:
        """Raise DescriptionError with all mistakes, if there are any."""
        if self.findings:
            raise DescriptionError(self.findings)
