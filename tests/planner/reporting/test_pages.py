"""Pages: text from outside stays text, drawings are closed and take the page's ink."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from planner.errors import MissingExtraError
from planner.reporting import charts
from planner.reporting.html import to_html
from planner.reporting.markdown import to_markdown
from planner.reporting.page import Figure, Grid, Items, Lines, Report, Section

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

HOSTILE = "</title><script>alert(1)</script> a|b $x$ `c` <img src=x onerror=y>\n# d"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Collects the elements, and whether each that opens also closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [f"{name}={value}" for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [f"{name}={value}" for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def hostile() -> Report:
    svg = charts.bars([HOSTILE, "_hidden"], {HOSTILE: np.array([1.0, 2.0]), "b": np.array([1.0, 1.0])}, HOSTILE)
    blocks = [
        Lines([(HOSTILE, HOSTILE)], frozenset({HOSTILE})),
        Grid([HOSTILE, "n"], [[HOSTILE, "1"]], frozenset({1})),
        Figure(svg, HOSTILE),
        Items([HOSTILE]),
        Items([HOSTILE, "```"], code=True),
    ]
    return Report(HOSTILE, HOSTILE, False, [Section(HOSTILE, blocks)])


def parsed(text: str) -> Balanced:
    page = Balanced()
    page.feed(text)
    assert page.open == []
    return page


def test_text_from_outside_stays_text_in_html() -> None:
    text = to_html(hostile())
    page = parsed(text)
    assert "script" not in page.seen
    assert "img" not in page.seen
    assert not [one for one in page.attributes if one.startswith("on")]


def test_a_page_needs_nothing_beside_it() -> None:
    """Links of the SVG's own parts and name spaces only."""
    text = to_html(hostile())
    links = [
        one.partition("=")[2] for one in parsed(text).attributes if one.split("=")[0] in ("href", "src", "xlink:href")
    ]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_text_from_outside_stays_text_in_markdown() -> None:
    text = to_markdown(hostile())
    assert "<script>" not in text.replace(r"\<script\>", "").split("````")[0]
    table = [line for line in text.splitlines() if line.startswith("|")]
    # Bars inside a cell are escaped, so each row has as many cells as the head.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}
    assert "````" in text
    assert "\n# d" not in text.split("````")[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_drawings_are_svg_in_the_pages_ink(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [
        charts.heat_maps({"a": rng.random((5, 4)) + 0.5, "b": np.ones((5, 4))}, "x", "y", "load"),
        charts.steps(["o1", "o2"], [rng.random(6), rng.random(6)], np.arange(6.0), "hour", "count"),
        charts.steps([f"o{i}" for i in range(20)], list(rng.random((20, 3))), np.arange(3.0), "hour", "count"),
        charts.bars(["one"], {"part": np.array([0.0])}, "USD"),
        charts.points(
            {"g": (rng.random(4), rng.random(4))}, {"m": (0.5, 0.5)}, "x", "y", (np.arange(3.0), np.arange(3.0))
        ),
        charts.slots(rng.integers(-2, 3, (8, 30)), ["a", "b", "c"], "node", "GPU"),
    ]
    for svg in drawn:
        assert parsed(svg).seen[0] == "svg"
        assert "currentColor" in svg
        assert charts.INK not in svg
        assert not re.match(r"<svg[^>]*\swidth=", svg)


def test_the_same_drawing_is_the_same_text() -> None:
    one, two = (charts.bars(["a"], {"b": np.array([2.0])}, "c") for _ in range(2))
    assert one == two


def test_without_the_extra_every_drawing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.colors"):
        monkeypatch.setitem(sys.modules, name, None)
    one = np.ones(1)
    for draw in (
        lambda: charts.bars(["a"], {"b": one}, "c"),
        lambda: charts.slots(np.zeros((1, 1), dtype=np.int64), ["a"], "node", "GPU"),
    ):
        with pytest.raises(MissingExtraError, match=r"gpuplan\[report\]"):
            draw()
