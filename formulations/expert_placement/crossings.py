"""The chain model, for CP-SAT and for linear models: are two experts of neighbouring layers apart?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from formulations.backends.cpsat import IntegerValues
from formulations.backends.linear import LinearBuilder
from formulations.expert_placement.exact_structure import levels, near_classes
from planner.workload import FloatArray, IntArray

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

#: A literal for each [layer][expert][gpu].
Literals = Sequence[Sequence[Sequence[Any]]]


def round_down(value: npt.ArrayLike) -> IntArray:
    """Integers no larger than the values."""
    return np.floor(value).astype(np.int64)


def add_crossings(
    model: cp_model.CpModel,
    place: Literals,
    price: FloatArray,
    cost: FloatArray,
    slots_per_gpu: int,
    held: FloatArray | None,
) -> list[tuple[int, Any]]:
    """Add the chain constraints; the objective terms (integer price, crossing literal), rounded down.

    place [L][E][G], one GPU for each expert; price [L-1, E, E] per unit of cost [G, G]; held [L, E, G] is
    a start.
    """
    terms: list[tuple[int, Any]] = []
    for step, near in levels(cost):
        classes = near_classes(near)
        for layer, flow in enumerate(price):
            crossing: dict[tuple[int, int], Any] = {}
            for e, f in np.argwhere(flow > 0).tolist():
                literal = crossing[e, f] = model.new_bool_var("")
                terms.append((int(round_down(flow[e, f] * step)), literal))
                if held is not None:
                    reach = near[held[layer, e].argmax(), held[layer + 1, f].argmax()]
                    model.add_hint(literal, int(not reach))
                for gpus, neighbours in classes:
                    leaves = sum(place[layer][e][g] for g in gpus)
                    model.add(leaves - sum(place[layer + 1][f][h] for h in neighbours) <= literal)
            for axis, most in enumerate((near.sum(axis=1).max(), near.sum(axis=0).max())):
                for expert in range(len(flow)):
                    around = [literal for pair, literal in crossing.items() if pair[axis] == expert]
                    fewest = len(around) - int(most) * slots_per_gpu
                    if fewest > 0:
                        model.add(sum(around) >= fewest)
    return terms


def read_place(place: Literals, read: IntegerValues) -> FloatArray:
    """Values of the placement literals, [L, E, G]."""
    return np.array([[[read(literal) for literal in row] for row in layer] for layer in place], dtype=np.float64)


def add_crossing_columns(
    model: LinearBuilder, place: IntArray, price: FloatArray, cost: FloatArray, slots_per_gpu: int
) -> None:
    """The same constraints and objective terms in a linear model; place [L, E, G] are columns."""
    for step, near in levels(cost):
        fewest = [int(near.sum(axis=axis).max()) * slots_per_gpu for axis in (1, 0)]
        for layer, flow in enumerate(price):
            e, f = np.nonzero(flow > 0)
            crossing = model.variables((e.size,), cost=flow[e, f] * step)
            for gpus, neighbours in near_classes(near):
                leaves, stays = place[layer, e][:, gpus], place[layer + 1, f][:, neighbours]
                model.rows(-np.inf, 0.0, (leaves, 1.0), (stays, -1.0), (crossing[:, None], -1.0))
            for side, most in zip((e, f), fewest, strict=True):
                for expert, count in enumerate(np.bincount(side)):
                    if count > most:
                        model.rows(count - most, np.inf, (crossing[side == expert][None], 1.0))
