"""Pages that are made from the program are current, all mathematics is on a page, docstrings stay as they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.catalog import _formulations, _mathematics
from cli.command import ExitCode
from planner.writers import WRITERS

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(DOCS / "tools"))
    import pages
    import plain_text

    yield pages, plain_text
    for name in ("pages", "plain_text"):
        del sys.modules[name]


def test_made_pages_are_current(tools: Any) -> None:
    stale = [name for name, text in tools[0].pages().items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make pages`"


def test_every_statement_of_a_model_is_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "mathematics").glob("*.md"))
    stated = {module for one in _formulations().values() for module in _mathematics(one)}
    shown = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    # The problem of `pods` has no symbols of its own.
    assert stated - shown <= {"formulations.pod_packing.problem"}


def test_every_format_and_exit_code_is_told() -> None:
    formats = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert [name for name in WRITERS if f"`{name}`" not in formats] == []
    codes = (DOCS / "reference" / "exit_codes.md").read_text(encoding="utf-8")
    assert [code for code in ExitCode if f"| {code.value} | " not in codes] == []


def test_every_page_has_a_place() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}, "see `nav` in mkdocs.yml"


def test_prose_becomes_paragraphs_and_formulas_stay(tools: Any) -> None:
    text = (
        "What it is: x_i *fast*, x < 2, `a_b`.\n\nSets  i in rows\n    x[i]  <= 1\n\n    y\n\n"
        "Variables: x of\ni.\nReference: me."
    )
    assert tools[1].to_markdown(text) == (
        "**What it is**: x\\_i \\*fast\\*, x &lt; 2, `a_b`.\n\n"
        '<pre class="plain">Sets  i in rows\n    x[i]  &lt;= 1\n&#32;\n    y</pre>\n\n'
        "**Variables**: x of\ni.\n\n**Reference**: me."
    )
