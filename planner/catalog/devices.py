"""The hardware catalogue: accelerators, links and node shapes by any of their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from planner.descriptions.base import Description
from planner.errors import OptionError
from planner.files import read_as
from planner.hardware import DeviceKind, Link, NodeShape

FOLDER = Path(__file__).parent / "hardware"


class DeviceFile(Description):
    """devices.json of the folder."""

    devices: tuple[DeviceKind, ...]


class LinkFile(Description):
    """links.json of the folder."""

    links: tuple[Link, ...]


class NodeFile(Description):
    """nodes.json of the folder."""

    nodes: tuple[NodeShape, ...]


AnyKind = TypeVar("AnyKind", DeviceKind, Link, NodeShape)


def folded(name: str) -> str:
    """The form in which names are compared: case, spaces, dashes and underscores do not matter."""
    return "".join(character for character in name.lower() if character.isalnum() or character == ".")


def by_any_name(kinds: tuple[AnyKind, ...]) -> dict[str, AnyKind]:
    """Kinds by the folded form of their names and aliases."""
    index = {folded(kind.name): kind for kind in kinds}
    for kind in kinds:
        for alias in kind.aliases:
            index.setdefault(folded(alias), kind)
    return index


def find(name: str, index: Mapping[str, AnyKind], what: str) -> AnyKind:
    """The kind that `name` means; OptionError with near names."""
    found = index.get(folded(name))
    if found is not None:
        return found
    near = [index[key].name for key in difflib.get_close_matches(folded(name), list(index), n=5)]
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else f"`gpuplan catalog {what}s` lists them"
    own = "; a cluster file may describe others under `devices`" if what == "device" else ""
    raise OptionError(f"the catalogue has no {what} {name[:80]!r}; {hint}{own}")


@cache
def _devices() -> dict[str, DeviceKind]:
    return by_any_name(read_as(FOLDER / "devices.json", DeviceFile).devices)


@cache
def _links() -> dict[str, Link]:
    return by_any_name(read_as(FOLDER / "links.json", LinkFile).links)


@cache
def _nodes() -> dict[str, NodeShape]:
    return by_any_name(read_as(FOLDER / "nodes.json", NodeFile).nodes)


def device(name: str) -> DeviceKind:
    """An accelerator by name or alias; OptionError with near names."""
    return find(name, _devices(), "device")


def link(name: str) -> Link:
    """A link by name or alias; OptionError with near names."""
    return find(name, _links(), "link")


def node(name: str) -> NodeShape:
    """A node shape by name or alias; OptionError with near names."""
    return find(name, _nodes(), "node")


def device_names() -> tuple[str, ...]:
    """Names of all accelerators, in the order of the catalogue."""
    return tuple(dict.fromkeys(kind.name for kind in _devices().values()))


def link_names() -> tuple[str, ...]:
    """Names of all links, in the order of the catalogue."""
    return tuple(dict.fromkeys(kind.name for kind in _links().values()))


def node_names() -> tuple[str, ...]:
    """Names of all node shapes, in the order of the catalogue."""
    return tuple(dict.fromkeys(kind.name for kind in _nodes().values()))
