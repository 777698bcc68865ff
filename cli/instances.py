"""Instances from a file, from flags, or from a file with flags over it; mistakes are located at either."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formulations.kinds import kind_name
from planner.descriptions.experts import ExpertsInstance
from planner.errors import DescriptionError, Finding
from planner.files import Loc, SourceText, read_source, validate
from planner.plan import FleetDocument
from planner.readers.expert_loads import read_expert_load
from planner.readers.routing_trace import read_routing_trace


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag on the command line and the value it gives to a key; None when it was not given.

    source : the file that the value was read from, under the same key; mistakes in it are located there.
    """

    name: str
    value: Any = None
    source: SourceText | None = None


@dataclass(frozen=True)
class MergedSource(SourceText):
    """A file's text with values of flags put over it; what is wrong with those is located at the flag."""

    flags: Mapping[Loc, Flag] = field(default_factory=dict)

    def finding(self, loc: Loc, message: str) -> Finding:
        """A Finding at the flag that gave the value, or in the file that the flag named, else in the instance."""
        for length in range(len(loc), 0, -1):
            flag = self.flags.get(loc[:length])
            if flag is None:
                continue
            if flag.source is not None:
                return flag.source.finding(loc, message)
            rest = ".".join(str(step) for step in loc[length:])
            return Finding(flag.name, f"{rest}: {message}" if rest else message)
        return super().finding(loc, message)


def merge(instance: str | None, flags: Mapping[Loc, Flag], problem: str = "experts") -> SourceText:
    """Read the instance, if any, and put the flags' values over its keys. A location is one or two keys deep.

    Without a file it is a `problem` of that name, and every key that has a flag is located at that flag, missing
    ones included.
    """
    if instance is None:
        source = SourceText("command line", "", {"problem": problem}, Path.cwd())
        return over(source, flags, all_located=True)
    return over(read_source(instance), flags)


def over(source: SourceText, flags: Mapping[Loc, Flag], all_located: bool = False) -> SourceText:
    """Put the flags' values over the keys; `all_located` also places what is missing at its flag."""
    given = {loc: flag for loc, flag in flags.items() if flag.value is not None}
    if not isinstance(source.value, dict) or not (given or all_located):
        return source
    value = dict(source.value)
    for loc, flag in given.items():
        if len(loc) == 1:
            value[loc[0]] = flag.value
        else:
            parent = value.get(loc[0])
            value[loc[0]] = {**(parent if isinstance(parent, dict) else {}), loc[1]: flag.value}
    return MergedSource(source.path, source.text, value, source.base_dir, flags if all_located else given)


def with_current(instance: str, path: str | None) -> SourceText:
    """The instance with what is in force: the file's name, or for a fleet its counts."""
    source = read_source(instance)
    if path is None:
        return source
    if kind_name(source) == "fleet":
        return over(source, {("current",): fleet_in_force(path)})
    return over(source, {("current",): Flag("--current", beside(instance, path))})


def fleet_in_force(path: str) -> Flag:
    """`--current` of a fleet: the instances of a plan document, or of a file that maps offers to counts."""
    source = read_source(path)
    if not (isinstance(source.value, dict) and "schema_version" in source.value):
        return Flag("--current", source.value)
    document = validate(source, FleetDocument)
    if document.plan is None:
        raise DescriptionError([source.finding(("plan",), "the document holds no plan")])
    counts = Counter[str]()
    for row in document.plan.allocation:
        counts[row.offer] += row.count
    return Flag("--current", dict(counts))


def base_dir(instance: str | None) -> Path:
    """What paths inside the instance are relative to."""
    return Path.cwd() if instance in (None, "-") else Path(str(instance)).resolve().parent


def beside(instance: str | None, path: str | None) -> str | None:
    """A path given on the command line, as the instance would name it."""
    if path is None or os.path.isabs(path):
        return path
    return os.path.relpath(path, base_dir(instance))


def load_source(instance: str | None, text: str) -> dict[str, Any]:
    """`FILE[:weight]` as an entry of `loads`."""
    path, colon, weight = text.rpartition(":")
    if colon and path and not os.path.exists(text):
        try:
            return {"file": beside(instance, path), "weight": float(weight)}
        except ValueError:
            pass
    return {"file": beside(instance, text)}


def with_slots(source: SourceText, redundant: int | None) -> SourceText:
    """Fill in `num_slots` from the data: number of experts + redundant, or just enough for all.

    Everything else is validated first, so that all of its mistakes are told.
    """
    if not isinstance(source.value, dict):
        return source
    num_gpus = source.value.get("num_gpus")
    num_gpus = num_gpus if isinstance(num_gpus, int) and num_gpus > 0 else 1
    described = validate(_with_num_slots(source, num_gpus), ExpertsInstance)
    load = described.loads[0] if described.loads else None
    if load is not None and load.counts is not None:
        num_experts = len(load.counts[0]) if load.counts else 0
    elif load is not None and load.file is not None:
        num_experts = read_expert_load(source.base_dir / load.file, name="first", weight=1.0).counts.shape[1]
    else:
        assert described.trace is not None
        num_experts = int(read_routing_trace(source.base_dir / described.trace.file, None).experts.max()) + 1
    enough = -(-num_experts // num_gpus) * num_gpus
    return _with_num_slots(source, enough if redundant is None else num_experts + redundant)


def _with_num_slots(source: SourceText, num_slots: int) -> SourceText:
    flags = {**(source.flags if isinstance(source, MergedSource) else {}), ("num_slots",): Flag("--redundant")}
    value = {**source.value, "num_slots": num_slots}
    return MergedSource(source.path, source.text, value, source.base_dir, flags)
