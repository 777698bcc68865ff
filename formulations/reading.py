"""What reading any instance needs: where its files are, and its mistakes, collected at the keys that cause them."""

from __future__ import annotations

from pathlib import Path

from planner.errors import DescriptionError, Finding
from planner.files import Loc, SourceText


class Reading:
    """Base of the readers: `find` notes a mistake, `stop_if_wrong` raises all that were noted."""

    def __init__(self, source: SourceText | None) -> None:
        self.source = source
        self.base_dir = Path.cwd() if source is None else source.base_dir
        self.findings: list[Finding] = []

    def find(self, loc: Loc, message: str) -> None:
        """Note a mistake at a key of the instance; without a source its keys are all there is to name."""
        if self.source is None:
            self.findings.append(Finding("instance", f"{'.'.join(map(str, loc))}: {message}"))
        else:
            self.findings.append(self.source.finding(loc, message))

    def stop_if_wrong(self) -> None:
        """Raise DescriptionError with everything noted so far, if there is anything."""
        if self.findings:
            raise DescriptionError(self.findings)

    def path(self, name: str) -> Path:
        """A file that the instance names."""
        return self.base_dir / name
