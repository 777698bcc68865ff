"""Placements in force: our plan documents and SGLang maps -> rows of logical experts per slot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.errors import DescriptionError
from planner.files import read_source, validate
from planner.plan import PlanDocument
from planner.workload import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class PlacementMap:
    """physical_to_logical int64 [rows, num_slots]; `layer_ids` of the rows, or None when the rows are all layers."""

    source: str
    physical_to_logical: IntArray
    layer_ids: tuple[int, ...] | None

    def rows(self, layer_ids: tuple[int, ...]) -> IntArray:
        """The rows of these absolute layers; DescriptionError when one is missing."""
        have = self.layer_ids
        if have is None:
            count = len(self.physical_to_logical)
            have = layer_ids if count == len(layer_ids) else tuple(range(count))
        index = {layer: row for row, layer in enumerate(have)}
        missing = [layer for layer in layer_ids if layer not in index]
        if missing:
            raise DescriptionError.single(self.source, f"has no row for layers {missing[:10]}")
        return self.physical_to_logical[[index[layer] for layer in layer_ids]]


def read_expert_placement(path: Path) -> PlacementMap:
    """Read a gpuplan plan document or an SGLang `physical_to_logical_map` JSON."""
    source = read_source(path)
    value = source.value
    if isinstance(value, dict) and "physical_to_logical_map" in value:
        rows = value["physical_to_logical_map"]
        if (
            not isinstance(rows, list)
            or not rows
            or not all(isinstance(row, list) and len(row) == len(rows[0]) and row for row in rows)
            or not all(type(slot) is int and 0 <= slot < 2**31 for row in rows for slot in row)
        ):
            raise DescriptionError.single(
                source.path, "physical_to_logical_map must be equal rows of expert ids"
            )
        return PlacementMap(source.path, np.array(rows, dtype=np.int64), None)
    document = validate(source, PlanDocument)
    if document.plan is None:
        raise DescriptionError.single(source.path, f"holds no plan (status {document.outcome.status})")
    return PlacementMap(source.path, document.plan.array, document.plan.layer_ids)
