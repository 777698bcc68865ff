"""Clusters as boxes: what is folded, what is counted, and text that cannot become markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from planner.reporting import topology as drawn
from planner.reporting.topology import Area, Box, Cell, free, heat, topology, used


def parsed(text: str) -> ElementTree.Element:
    """The drawing as XML: it is well formed."""
    return ElementTree.fromstring(f"<figure>{text}</figure>")


def node(name: str, *places: int) -> Box:
    return Box(name, (tuple(free() if place < 0 else used(place, str(place), "") for place in places),))


def test_equal_nodes_are_drawn_once_with_their_number() -> None:
    """1,000 nodes of two kinds are two boxes."""
    boxes = [node(f"node {place}", *([0, 0] if place < 600 else [1, -1])) for place in range(1000)]
    text = topology([Area("all", tuple(boxes))])
    assert text.count('class="box"') == 2
    assert "<b>600 x</b> node 0 .. node 599" in text
    assert "<b>400 x</b> node 600 .. node 999" in text


def test_equal_areas_are_drawn_once_with_their_number() -> None:
    """32 leaves of 32 nodes, one of which is unlike the others."""
    leaves = [Area(f"leaf {leaf}", tuple(node(f"n{leaf}-{k}", 0) for k in range(32))) for leaf in range(31)]
    leaves.append(Area("leaf 31", tuple(node(f"n31-{k}", -1) for k in range(32))))
    text = topology(leaves)
    assert text.count('class="area"') == 2
    assert "leaf 0 .. leaf 30 <b>(31 alike)</b>" in text
    assert len(text) < 3_000


def test_what_is_not_drawn_is_counted() -> None:
    """Every node differs: some are drawn, the others told."""
    boxes = [Box(f"n{k}", ((Cell(str(k), "#ffffff", ""),),)) for k in range(100)]
    text = topology([Area("", tuple(boxes))])
    assert text.count('class="box"') == drawn.MOST_BOXES
    assert f"and {100 - drawn.MOST_BOXES} more nodes" in text


def test_text_from_outside_is_escaped() -> None:
    nasty = "<script>alert(1)</script>\"'&"
    cell = Cell(nasty, "#ffffff", nasty)
    text = topology([Area(nasty, (Box(nasty, ((cell,),), nasty),))], [(cell, nasty)])
    assert "<script" not in text
    assert parsed(text).find(".//script") is None


@pytest.mark.parametrize("count", [1, 2, 8, 9, 72])
def test_devices_stay_inside_their_box(count: int) -> None:
    root = parsed(topology([Area("", (Box("n", (tuple(used(k, str(k), "") for k in range(count)),)),))]))
    (svg,) = root.iter("{http://www.w3.org/2000/svg}svg")
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    rects = [rect for rect in svg.iter("{http://www.w3.org/2000/svg}rect") if rect.attrib["fill"] != "none"]
    assert len(rects) == count
    for rect in rects:
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height
    assert width <= drawn.ROW * (drawn.CELL + drawn.GAP) + 2 * drawn.RIM


def test_heat_darkens_and_its_text_can_be_read() -> None:
    shades = [heat(share) for share in (0.0, 0.5, 1.0, 7.0)]
    assert shades[2] == shades[3]
    greys = [sum(int(shade[k : k + 2], 16) for k in (1, 3, 5)) for shade in shades[:3]]
    assert greys == sorted(greys, reverse=True)
    inks = [re.search(r'fill="(#\w+)">x', topology([], [(Cell("x", shade, ""), "")])) for shade in shades]
    assert [ink.group(1) for ink in inks if ink] == ["#000", "#000", "#fff", "#fff"]
