"""Instances from a file, from flags, or from a file with flags over it; mistakes are located at either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from formulations.in_force import in_force
from planner.descriptions.experts import ExpertsInstance
from planner.errors import OptionError
from planner.files import Loc, SourceText, read_source, validate, write_text
from planner.overlay import Flag, MergedSource, over
from planner.readers.expert_loads import read_expert_load
from planner.readers.routing_trace import read_routing_trace
from planner.writers.fragments import to_yaml


def merge(instance: str | None, flags: Mapping[Loc, Flag], problem: str = "experts") -> SourceText:
    """Read the instance, if any, and put the flags' values over its keys.

    Without a file it is a `problem` of that name, and every key that has a flag is located at that flag, missing
    ones included.
    """
    if instance is None:
        source = SourceText("command line", "", {"problem": problem}, Path.cwd())
        return over(source, flags, all_located=True)
    return over(read_source(instance), flags)


def with_current(instance: str, path: str | None) -> SourceText:
    """The instance with what is in force."""
    source = read_source(instance)
    return source if path is None else over(source, in_force(source, path))


def save(source: SourceText, path: str | None) -> None:
    """Write what a file and flags say together. Raises OptionError for a folder from which its paths lead elsewhere."""
    if path is None:
        return
    if Path(path).resolve().parent != source.base_dir.resolve():
        raise OptionError(f"--save-instance writes beside the files that the instance names, in {source.base_dir}")
    write_text(path, to_yaml(source.value))


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
    return MergedSource(source.path, source.text, value, source.base_dir, flags, source)
