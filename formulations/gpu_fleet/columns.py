"""Where the variables and rows of a fleet model are; the model itself is made in `milp`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from formulations.backends.linear import IntArray as Columns
from formulations.backends.linear import LinearModel
from formulations.gpu_fleet.handovers import FlowColumns

#: Row within a family, column, value.
Entries = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Columns x of the pairs (bucket, config), all [N], and what roles hand to one another."""

    x: Columns
    bucket: Columns
    config: Columns
    flows: FlowColumns


@dataclass(frozen=True, slots=True, eq=False)
class PeriodColumns:
    """Columns of one period: y [K], z [C], u of the buckets with a demand (asked), and where requests go.

    u : empty where all must be served. lost : by lost offer, z' and the routing. lost_zone : by zone, on z of others.
    """

    y: Columns
    z: Columns
    u: Columns
    asked: Columns
    routing: Routing
    lost: dict[int, tuple[Columns, Routing]]
    lost_zone: dict[int, Routing]


@dataclass(frozen=True, slots=True, eq=False)
class FleetModel:
    """The model of some periods, where its variables are, and each period's rows of packing and whole instances.

    changed : columns of instances added and dropped; empty without a current fleet.
    """

    model: LinearModel
    periods: tuple[int, ...]
    columns: tuple[PeriodColumns, ...]
    packing: tuple[range, ...]
    changed: Columns
