"""A cluster as boxes with what runs on its devices: areas hold nodes, nodes hold islands, islands hold devices.

Every box is an SVG of its own that keeps its size; boxes flow like words, so that the drawing fits a phone, a screen
and paper alike. Equal boxes of an area, and equal areas, are drawn once with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

from planner.reporting.charts import COLOURS

#: Pixels of a device, between devices, and round an island.
CELL, GAP, RIM = 26, 3, 4
#: Devices of an island in one row at most; rows of an island have about equal numbers.
ROW = 8
#: Areas, and boxes of an area, that are drawn; the others are counted.
MOST_AREAS, MOST_BOXES = 24, 36
#: Characters of a device's text at full size; longer ones are written smaller.
FULL_SIZE = 2
#: What devices that do nothing look like: grey that shows through.
FREE = "#88888833"


@dataclass(frozen=True, slots=True)
class Cell:
    """A device, or a place on one: what is written on it, its colour, and what it says when pointed at."""

    text: str
    colour: str
    told: str


@dataclass(frozen=True, slots=True)
class Box:
    """`count` equal nodes. islands : devices that are joined more closely than the rest of the node, or of the box."""

    name: str
    islands: tuple[tuple[Cell, ...], ...]
    note: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Area:
    """Nodes that share a switch, a rack, a zone or a site. count : of equal areas."""

    name: str
    boxes: tuple[Box, ...]
    count: int = 1


def free() -> Cell:
    """A device on which nothing runs."""
    return Cell("", FREE, "free")


def used(place: int, text: str, told: str) -> Cell:
    """A device in the colour of the legend's entry at `place`."""
    return Cell(text, COLOURS[place % len(COLOURS)], told)


def heat(share: float) -> str:
    """A colour from pale to dark red for a share between 0 and 1; it prints as grey of the same order."""
    low, high = (255, 241, 200), (165, 20, 30)
    return "#" + "".join(
        f"{round(a + (b - a) * min(1.0, max(0.0, share))):02x}" for a, b in zip(low, high, strict=True)
    )


def topology(areas: Sequence[Area], legend: Sequence[tuple[Cell, str]] = ()) -> str:
    """The drawing as HTML that may stand in a page: boxes of SVG, and what their colours mean. Text is escaped."""
    folded = _fold_areas(areas)
    drawn = [_area(area) for area in folded[:MOST_AREAS]]
    if len(folded) > MOST_AREAS:
        drawn.append(f'<p class="more">and {len(folded) - MOST_AREAS} more kinds of areas</p>')
    keys = "".join(f"<span>{_svg(((cell,),))} {escape(text)}</span>" for cell, text in legend)
    return f'<div class="fabric">{"".join(drawn)}</div>' + (f'<div class="legend">{keys}</div>' if keys else "")


def _fold_areas(areas: Iterable[Area]) -> list[Area]:
    """Equal areas as one with their number, each with its boxes folded; in the order of the first."""
    found: dict[object, tuple[Area, list[str]]] = {}
    for area in areas:
        boxes = _fold_boxes(area.boxes)
        key = tuple((box.islands, box.note, box.count) for box in boxes)
        if key in found:
            found[key] = (replace(found[key][0], count=found[key][0].count + area.count), found[key][1])
        else:
            found[key] = (replace(area, boxes=boxes), [])
        found[key][1].append(area.name)
    return [replace(area, name=_names(names)) for area, names in found.values()]


def _fold_boxes(boxes: Iterable[Box]) -> tuple[Box, ...]:
    found: dict[object, tuple[Box, list[str]]] = {}
    for box in boxes:
        key = (box.islands, box.note)
        if key in found:
            found[key] = (replace(found[key][0], count=found[key][0].count + box.count), found[key][1])
        else:
            found[key] = (box, [])
        found[key][1].append(box.name)
    return tuple(replace(box, name=_names(names)) for box, names in found.values())


def _names(names: Sequence[str]) -> str:
    """One name, both of two, or the first and the last."""
    names = list(dict.fromkeys(names))
    return " .. ".join([names[0], names[-1]] if len(names) > 2 else names)


def _area(area: Area) -> str:
    boxes = [_box(box) for box in area.boxes[:MOST_BOXES]]
    rest = sum(box.count for box in area.boxes[MOST_BOXES:])
    if rest:
        boxes.append(f'<p class="more">and {rest} more nodes</p>')
    many = f" <b>({area.count} alike)</b>" if area.count > 1 else ""
    head = f"<h3>{escape(area.name)}{many}</h3>" if area.name else ""
    return f'<section class="area">{head}<div class="boxes">{"".join(boxes)}</div></section>'


def _box(box: Box) -> str:
    many = f"<b>{box.count} x</b> " if box.count > 1 else ""
    note = f"<small>{escape(box.note)}</small>" if box.note else ""
    return f'<div class="box"><span>{many}{escape(box.name)}</span>{_svg(box.islands)}{note}</div>'


def _svg(islands: Sequence[Sequence[Cell]]) -> str:
    """Islands under one another, each a frame round its devices in rows."""
    framed = len(islands) > 1 or any(len(island) > 1 for island in islands)
    rim = RIM if framed else 0
    step, parts, top, width = CELL + GAP, [], 0, 0
    for island in islands:
        rows = max(1, -(-len(island) // ROW))
        columns = -(-len(island) // rows)
        wide, high = columns * step - GAP + 2 * rim, rows * step - GAP + 2 * rim
        if framed:
            parts.append(
                f'<rect x="0.5" y="{top + 0.5}" width="{wide - 1}" height="{high - 1}" rx="4" fill="none"'
                ' stroke="currentColor" stroke-opacity="0.45"/>'
            )
        for place, cell in enumerate(island):
            parts.append(_cell(cell, rim + place % columns * step, top + rim + place // columns * step))
        top, width = top + high + GAP, max(width, wide)
    told = escape(", ".join(dict.fromkeys(cell.told for island in islands for cell in island)), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top - GAP}"'
        f' viewBox="0 0 {width} {top - GAP}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
    )


def _cell(cell: Cell, left: int, top: int) -> str:
    drawn = f'<rect x="{left}" y="{top}" width="{CELL}" height="{CELL}" rx="3" fill="{cell.colour}"/>'
    if cell.text:
        size = 12 if len(cell.text) <= FULL_SIZE else 10 if len(cell.text) <= FULL_SIZE + 1 else 8
        drawn += (
            f'<text x="{left + CELL / 2:g}" y="{top + CELL / 2 + size * 0.36:g}" text-anchor="middle"'
            f' font-size="{size}" fill="{_ink(cell.colour)}">{escape(cell.text)}</text>'
        )
    return f"<g><title>{escape(cell.told)}</title>{drawn}</g>"


def _ink(colour: str) -> str:
    """Black or white, whichever is read better on a colour; the page's ink on what shows through."""
    if len(colour) > 7:
        return "currentColor"
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    # Relative luminance without the gamma curve's foot; 0.18 is where black and white have equal contrast (WCAG 2.2).
    return "#000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#fff"
