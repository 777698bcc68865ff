"""What is in force when an instance is planned anew: a plan document, or a file of another tool."""

from __future__ import annotations

import os
from collections import Counter

from formulations.kinds import kind_name
from planner.errors import DescriptionError
from planner.files import Loc, SourceText, read_source, validate
from planner.overlay import Flag
from planner.plan import FleetDocument


def in_force(source: SourceText, path: str, name: str = "--current") -> dict[Loc, Flag]:
    """The instance's `current`, from the file at `path`: the file itself, or for a fleet its counts.

    name : of the flag or key that gave the path, to locate mistakes. Raises DescriptionError.
    """
    if kind_name(source) == "fleet":
        return {("current",): fleet_in_force(path, name)}
    return {("current",): Flag(name, path if os.path.isabs(path) else os.path.relpath(path, source.base_dir))}


def fleet_in_force(path: str, name: str = "--current") -> Flag:
    """The instances of a plan document, or of a file that maps offers to counts."""
    source = read_source(path)
    if not (isinstance(source.value, dict) and "schema_version" in source.value):
        return Flag(name, source.value)
    document = validate(source, FleetDocument)
    if document.plan is None:
        raise DescriptionError([source.finding(("plan",), "the document holds no plan")])
    counts = Counter[str]()
    for row in document.plan.allocation:
        counts[row.offer] += row.count
    return Flag(name, dict(counts))
