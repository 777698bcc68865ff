"""A report as Markdown for a pull request: the same sections; of a figure the caption."""

from __future__ import annotations

import re

from planner.reporting.page import Block, Figure, Grid, Lines, Report

#: What Markdown or the HTML inside it would take for markup.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def to_markdown(report: Report) -> str:
    """The report; text from outside is escaped."""
    parts = [f"# {_text(report.title)}", f"**{_text(report.answer)}**"]
    for section in report.sections:
        parts += [f"## {_text(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Lines):
        return "\n".join(f"- {_label(label, label in block.alarming)}: {_text(text)}" for label, text in block.rows)
    if isinstance(block, Grid):
        rule = ["---:" if place in block.numeric else "---" for place in range(len(block.columns))]
        rows = [[_text(name) for name in block.columns], rule, *([_text(cell) for cell in row] for row in block.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if isinstance(block, Figure):
        return f"*(figure in the HTML report)* {_text(block.caption)}"
    if block.code:
        # A fence longer than any inside.
        fence = "`" * max(3, 1 + max((len(run) for text in block.texts for run in re.findall("`+", text)), default=0))
        return "\n".join([fence, *(text.replace("\n", " ") for text in block.texts), fence])
    return "\n".join(f"- {_text(text)}" for text in block.texts)


def _label(label: str, alarming: bool) -> str:
    return f"**{_text(label)}**" if alarming else _text(label)


def _text(text: str) -> str:
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
