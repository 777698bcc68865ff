"""What a report holds: sections of labelled lines, tables, figures and lists, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Characters from which a cell is wrapped.
WORDY = 40


@dataclass(frozen=True, slots=True)
class Lines:
    """Labels and what stands beside them. alarming : labels of lines that a reader must not miss."""

    rows: Sequence[tuple[str, str]]
    alarming: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; `numeric` columns, by position, are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()

    @property
    def wordy(self) -> frozenset[int]:
        """Columns of sentences and lists, which are wrapped and need room for that."""
        long = (place for row in self.rows for place, cell in enumerate(row) if len(cell) > WORDY)
        return frozenset(long) - self.numeric


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing: one inline SVG, or boxes of it that flow (`topology`).

    caption : what it shows, and how to read it; also what stands for it in Markdown.
    """

    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sentences, or of commands to copy."""

    texts: Sequence[str]
    code: bool = False


Block = Lines | Grid | Figure | Items


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Report:
    """A page: the answer in one line, then sections from the most to the least important."""

    title: str
    answer: str
    good: bool
    sections: Sequence[Section]
