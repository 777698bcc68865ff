"""JSON Schema of every kind of file that is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from planner.cluster import Cluster
from planner.descriptions.deploy import DeployInstance
from planner.descriptions.efficiency import Efficiency
from planner.descriptions.experts import ExpertsInstance
from planner.descriptions.fleet import FleetInstance
from planner.descriptions.layers import LayersInstance, WindowsInstance
from planner.descriptions.parallel import ParallelInstance
from planner.descriptions.pods import PodsInstance
from planner.descriptions.training import TrainingInstance
from planner.errors import OptionError
from planner.hardware import DeviceKind, Link
from planner.plan import (
    DeployDocument,
    ExpertsDocument,
    FleetDocument,
    LayersDocument,
    ParallelDocument,
    PodsDocument,
    TrainingDocument,
    WindowsDocument,
)

#: Models by file kind.
KINDS: Mapping[str, type[BaseModel]] = {
    "experts": ExpertsInstance,
    "plan": ExpertsDocument,
    "fleet": FleetInstance,
    "fleet-plan": FleetDocument,
    "parallel": ParallelInstance,
    "parallel-plan": ParallelDocument,
    "layers": LayersInstance,
    "layers-plan": LayersDocument,
    "windows": WindowsInstance,
    "windows-plan": WindowsDocument,
    "training": TrainingInstance,
    "training-plan": TrainingDocument,
    "pods": PodsInstance,
    "pods-plan": PodsDocument,
    "deploy": DeployInstance,
    "deploy-plan": DeployDocument,
    "cluster": Cluster,
    "device": DeviceKind,
    "link": Link,
    "efficiency": Efficiency,
}


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a file kind; OptionError for an unknown one."""
    if kind not in KINDS:
        raise OptionError(f"there is no file kind {kind!r}; choose from {', '.join(KINDS)}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **KINDS[kind].model_json_schema()}
