"""Drawings as SVG text, from plain arrays; they take the page's colour of ink, in light and in dark.

Colours are Okabe and Ito's, which people with colour blindness tell apart (jfly.uni-koeln.de/color), and a sequential
map that prints well in grey.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.errors import MissingExtraError
from planner.workload import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a600", "#8c8c8c")
#: Stands for the page's ink until the drawing is text; no other part of a drawing has this colour.
INK = "#010203"
WIDTH_IN, HEIGHT_IN = 9.0, 3.2
#: Colours of a drawing; more cannot be told apart on a page.
MOST_NAMED = 8


class Canvas:
    """The axes of a drawing, and its SVG once it is closed."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def drawing(columns: int = 1, height_in: float = HEIGHT_IN) -> Iterator[Canvas]:
    """Axes side by side, written as SVG when the block ends. Raises MissingExtraError."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("charts need the extra gpuplan[report]") from None
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "gpuplan", "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        canvas = Canvas(figure.subplots(1, columns, squeeze=False)[0])
        yield canvas
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    canvas.svg = _inline(out.getvalue())


def _inline(text: str) -> str:
    """The <svg> element alone, without a fixed size, in the page's ink and font."""
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    return f'{head} role="img">{rest}'.replace(INK, "currentColor").strip()


def heat_maps(maps: Mapping[str, FloatArray], across: str, down: str, meaning: str, middle: float = 1.0) -> str:
    """Matrices [down, across] beside one another on one scale, which is white at `middle` or below."""
    highest = max(float(np.max(one)) for one in maps.values())
    with drawing(len(maps)) as canvas:
        for axes, (title, values) in zip(canvas.axes, maps.items(), strict=True):
            image = axes.imshow(
                values, aspect="auto", interpolation="nearest", cmap="YlOrRd", vmin=middle,
                vmax=max(highest, middle * (1 + 1e-9)), rasterized=True,
            )  # fmt: skip
            axes.set(title=title, xlabel=across, ylabel=down)
        bar = canvas.axes[-1].figure.colorbar(image, ax=list(canvas.axes))
        bar.set_label(meaning)
    return canvas.svg


def steps(names: Sequence[str], values: Sequence[FloatArray], x: FloatArray, across: str, up: str) -> str:
    """Quantities stacked over one another in their order, one value for each step of x."""
    with drawing() as canvas:
        axes: Axes = canvas.axes[0]
        base = np.zeros(len(x))
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            axes.bar(x, value, width=1.0, bottom=base, label=_plain(name), color=COLOURS[place % len(COLOURS)])
            base = base + value
        axes.set(xlabel=across, ylabel=up, xlim=(x[0] - 0.5, x[-1] + 0.5))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def bars(names: Sequence[str], parts: Mapping[str, FloatArray], across: str) -> str:
    """A horizontal bar for each name, made of the parts in order."""
    with drawing(height_in=max(1.4, 0.5 + 0.32 * len(names))) as canvas:
        axes: Axes = canvas.axes[0]
        place = np.arange(len(names))
        base = np.zeros(len(names))
        for index, (part, value) in enumerate(parts.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(place, value, left=base, height=0.7, label=_plain(part), color=colour)
            base = base + value
        axes.set_yticks(place, [_plain(name) for name in names])
        axes.invert_yaxis()
        axes.set(xlabel=across)
        if len(parts) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def points(
    groups: Mapping[str, tuple[FloatArray, FloatArray]],
    marked: Mapping[str, tuple[float, float]],
    across: str,
    up: str,
    line: tuple[FloatArray, FloatArray] | None = None,
    log: bool = False,
) -> str:
    """Points (x, y) by group; those that are marked have a name; `line` joins its points in order."""
    with drawing() as canvas:
        axes: Axes = canvas.axes[0]
        for index, (name, (x, y)) in enumerate(groups.items()):
            axes.scatter(x, y, s=14, label=_plain(name), color=COLOURS[index % len(COLOURS)], linewidths=0)
        if line is not None:
            axes.plot(*line, color=INK, linewidth=0.8)
        for name, (one, two) in marked.items():
            axes.scatter([one], [two], s=60, facecolors="none", edgecolors=INK)
            axes.annotate(_plain(name), (one, two), xytext=(6, 6), textcoords="offset points")
        axes.set(xlabel=across, ylabel=up)
        if log:
            axes.set_xscale("log")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def lines(
    x: FloatArray, curves: Mapping[str, FloatArray], marked: Mapping[str, tuple[float, float]], across: str, up: str
) -> str:
    """Curves over one x with a mark at each point, NaN where there is none; the second and later ones are dashed."""
    with drawing() as canvas:
        axes: Axes = canvas.axes[0]
        for index, (name, y) in enumerate(curves.items()):
            line, mark = ("--", ".") if index else ("-", "o")
            axes.plot(x, y, line, marker=mark, markersize=5, label=_plain(name), color=COLOURS[index % len(COLOURS)])
        for name, (one, two) in marked.items():
            axes.scatter([one], [two], s=80, facecolors="none", edgecolors=INK, zorder=3)
            axes.annotate(_plain(name), (one, two), xytext=(8, -12), textcoords="offset points")
        axes.set(xlabel=across, ylabel=up, ylim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def slots(rows: IntArray, names: Sequence[str], across: str, down: str) -> str:
    """A matrix [down, across] of what fills each place: positions in `names`, -1 for nothing, -2 for no place."""
    shown = [*COLOURS[: len(names)], "#88888833", "#00000000"]
    values = np.where(rows == -1, len(names), np.where(rows == -2, len(names) + 1, rows))
    with drawing(height_in=max(1.6, min(5.0, 0.4 + 0.16 * rows.shape[0]))) as canvas:
        from matplotlib.colors import ListedColormap

        axes: Axes = canvas.axes[0]
        axes.imshow(
            values, aspect="auto", interpolation="nearest", cmap=ListedColormap(shown), vmin=-0.5,
            vmax=len(shown) - 0.5, rasterized=True,
        )  # fmt: skip
        axes.set(xlabel=across, ylabel=down)
        for name, colour in zip([*names, "free"], shown, strict=False):
            axes.bar(0, 0, color=colour, label=_plain(name))
        axes.set(xlim=(-0.5, rows.shape[1] - 0.5), ylim=(rows.shape[0] - 0.5, -0.5))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def timeline(names: Sequence[str], kinds: Mapping[str, tuple[IntArray, FloatArray, FloatArray]], across: str) -> str:
    """A row for each name, and on it bars by kind: rows, starts and lengths, arrays of one length."""
    with drawing(height_in=max(1.4, min(6.0, 0.6 + 0.22 * len(names)))) as canvas:
        axes: Axes = canvas.axes[0]
        for index, (kind, (rows, starts, lengths)) in enumerate(kinds.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(
                rows, lengths, left=starts, height=0.8, label=_plain(kind), color=colour, edgecolor="white",
                linewidth=0.2,
            )  # fmt: skip
        axes.set_yticks(np.arange(len(names)), [_plain(name) for name in names])
        axes.invert_yaxis()
        axes.set(xlabel=across)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.svg


def _plain(text: str) -> str:
    """A name as it is: no mathematics between dollar signs, no name that a legend hides, nothing endless."""
    text = "".join(char if char.isprintable() else "?" for char in text)[:60]
    return text.replace("$", r"\$").lstrip("_") or "?"
