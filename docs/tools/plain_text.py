"""Plain text, such as our docstrings, as Markdown: what is laid out by columns stays as it is, the rest is paragraphs.

Formulas and tables in docstrings are aligned by spaces, which Markdown would run together.
"""

from __future__ import annotations

import html
import re

#: Of a line that is laid out: indented, or with a gap inside.
LAID_OUT = re.compile(r"^ |\S {2,}\S")
#: A word that begins a part of the mathematics, as in "Variables: y whole nodes ...".
LABEL = re.compile(r"^([A-Z][a-z]+(?: [a-z]+){0,3})( \([^)]*\))?: ")
SPECIAL = re.compile(r"([\\*_\[\]#])")


def to_markdown(text: str) -> str:
    """Blocks that are laid out as preformatted text, others as paragraphs; code stays code."""
    blocks: list[tuple[bool, list[str]]] = []
    for lines in (block.split("\n") for block in re.split(r"\n\s*\n", text)):
        laid_out = any(LAID_OUT.search(line) for line in lines)
        if laid_out and blocks and blocks[-1][0]:
            blocks[-1][1].extend(["", *lines])
        else:
            blocks.append((laid_out, list(lines)))
    return "\n\n".join(_formatted(lines) if laid_out else _paragraphs(lines) for laid_out, lines in blocks)


def _formatted(lines: list[str]) -> str:
    # In one element, and without an empty line, at which Markdown would end it.
    text = "\n".join(html.escape(line, quote=False) or "&#32;" for line in lines)
    return f'<pre class="plain">{text}</pre>'


def _paragraphs(lines: list[str]) -> str:
    """A new paragraph at every label."""
    found: list[str] = []
    for line in lines:
        label = LABEL.match(line)
        if label or not found:
            found.append("")
        rest = line[label.end() :] if label else line
        head = f"**{label.group(1)}**{escaped(label.group(2) or '')}: " if label else ""
        found[-1] += ("\n" if found[-1] else "") + head + escaped(rest)
    return "\n\n".join(found)


def escaped(text: str) -> str:
    """Without Markdown's own marks, but for `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if index % 2 else SPECIAL.sub(r"\\\1", html.escape(part, quote=False)) for index, part in enumerate(parts)
    )
