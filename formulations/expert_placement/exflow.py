"""ExFlow's affinity placement: keep consecutive experts of a token on one GPU, by integer programs on transitions.

Sets    l layers, e and f experts, p parts (all GPUs, or the two halves of a set of GPUs)
Data    flow[l,e,f]  fraction of tokens whose best expert is e in layer l and f in layer l + 1
Variables (binary)
        place[l,e,p]     expert e of layer l lies in part p
        crossing[l,e,f]  e and f lie in different parts
Objective   minimise  sum flow[l,e,f] crossing[l,e,f]
Constraints
    one part    sum_p place[l,e,p] = 1
    equal       sum_e place[l,e,p] = experts / parts
    crossing    crossing[l,e,f] >= place[l,e,p] - place[l+1,f,p];  at most experts / parts of the f stay with e
    symmetry    parts are alike, so the first expert of the first layer lies in the first

As published, GPUs are bisected: halves first, then halves of halves, one program for each set. That needs a power of
two; otherwise, or on request, one program places the experts on all GPUs at once. The published program has a binary
for each token and layer; tokens with the same transition cross together, so E**2 (L - 1) weights say the same.

Ignores     load (the plan is priced with it all the same), distances beyond "same part", every expert of a token but
            the best, and replicas.
Refused     spare slots, no trace, group_spread, max_moves, and programs above MAX_ROWS.
Work limit  deterministic seconds for each program.
Reference   Yao et al., "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference",
            arXiv 2401.08383.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import solve_cpsat
from formulations.expert_placement.bounds import lower_bound
from formulations.expert_placement.crossings import Literals, add_crossings, read_place
from formulations.expert_placement.exact import PartBudget, last_stop
from formulations.expert_placement.local_method import finished_plan
from formulations.expert_placement.problem import ExpertPlacementProblem, refuse
from formulations.expert_placement.transport import transport_start
from formulations.outcome import Budget, SearchResult, SolveOptions, Status, Stop
from planner.plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

#: Crossing constraints of the largest program (transitions that occur x parts); it builds in seconds.
MAX_ROWS = 200_000
#: Integer prices per unit of flow; finer than any trace of less than ten million tokens.
PRICES = 10_000_000


def search(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    budget: Budget,
    hint: ExpertPlacement | None,
    *,
    bisection: bool | None = None,
) -> SearchResult[ExpertPlacement]:
    """Few crossings, whatever the load. `bisection` None means where the number of GPUs is a power of two.

    A program without a solution in its share of the time keeps its start, which the solver's name then says. Raises
    OptionError for what the module docstring says is refused.
    """
    power = problem.num_gpus & (problem.num_gpus - 1) == 0
    halving = power if bisection is None else bisection
    _refuse(problem, halving, power)
    experts = np.tile(np.arange(problem.num_experts), (problem.num_layers, 1))
    gpu_of = np.zeros_like(experts)
    hinted = None if hint is None else np.argsort(hint.array, axis=1) // problem.slots_per_gpu
    pending = deque([_Program(experts, np.arange(problem.num_gpus), halving)])
    stops: set[Stop] = set()
    programs = kept = 0
    while pending:
        program = pending.popleft()
        if program.num_parts == 1:
            np.put_along_axis(gpu_of, program.members, program.gpus[0], axis=1)
            continue
        share_s = budget.remaining_s * program.work / (program.work + sum(other.work for other in pending))
        part, stop = _solve(problem, program, options, PartBudget(budget, max(1e-3, share_s)), hinted)
        programs += 1
        kept += stop is None
        stops.add(stop or budget.stop() or Stop.TIME_LIMIT)
        pending.extend(program.split(part))
    return SearchResult(
        status=Status.FEASIBLE,
        stop=last_stop(stops),
        plan=finished_plan(problem, np.argsort(gpu_of, axis=1, kind="stable")),
        solver="cp-sat" + (f" ({kept} of {programs} programs kept their start)" if kept else ""),
        solver_version=load_ortools_first(),
        bound=lower_bound(problem),
    )


def _refuse(problem: ExpertPlacementProblem, halving: bool, power: bool) -> None:
    refuse(problem.trace is None, "exflow", "needs a routing trace")
    refuse(problem.num_slots != problem.num_experts, "exflow", "places each expert once: no spare slots")
    refuse(problem.group_spread is not None, "exflow", "knows no group_spread")
    refuse(problem.max_moves is not None, "exflow", "knows no max_moves")
    refuse(halving and not power, "exflow", "bisects a power of two of GPUs only")
    rows = int((problem.transitions > 0).sum()) * (2 if halving else problem.num_gpus)
    refuse(rows > MAX_ROWS, "exflow", f"would need {rows} rows in one program, at most {MAX_ROWS}")


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """Experts `members` [L, n] to place on `gpus`, in halves or each GPU a part."""

    members: IntArray
    gpus: IntArray
    halving: bool

    @property
    def num_parts(self) -> int:
        return min(2, self.gpus.size) if self.halving else self.gpus.size

    @property
    def work(self) -> float:
        """Share of the time for this program and those it leads to: experts x halvings to come."""
        return self.members.shape[1] * max(1e-9, math.log2(self.gpus.size))

    def split(self, part: IntArray) -> list[_Program]:
        """One program for each part; part [L, n]."""
        order = np.argsort(part, axis=1, kind="stable")
        members = np.split(np.take_along_axis(self.members, order, axis=1), self.num_parts, axis=1)
        gpus = np.split(self.gpus, self.num_parts)
        return [_Program(*pair, self.halving) for pair in zip(members, gpus, strict=True)]


def _solve(
    problem: ExpertPlacementProblem,
    program: _Program,
    options: SolveOptions,
    budget: Budget,
    hinted: IntArray | None,
) -> tuple[IntArray, Stop | None]:
    """Part of each member, [L, n]; and why the program ended, None when it found nothing and kept its start."""
    members = program.members
    flow = np.stack(
        [
            layer[np.ix_(members[index], members[index + 1])]
            for index, layer in enumerate(problem.transitions)
        ]
    ) if problem.num_layers > 1 else np.zeros((0, members.shape[1], members.shape[1]))
    start = _start(program, flow, budget, hinted)
    if budget.stop():
        return start, None
    model, place = _build(flow, start, program.num_parts)
    result, read = solve_cpsat(model, budget, replace(options, time_limit_s=max(1e-3, budget.remaining_s)))
    if read is None:
        return start, None
    return read_place(place, read).argmax(axis=2), result.stop


def _start(program: _Program, flow: FloatArray, budget: Budget, hinted: IntArray | None) -> IntArray:
    """The better of alternating transportation and the hint, [L, n]; the first expert in part 0."""
    num_layers, size = program.members.shape
    parts = program.num_parts
    apart = 1.0 - np.eye(parts)
    rows = transport_start(flow, apart, np.ones((num_layers, size)), size, budget)
    candidates = [np.argsort(rows, axis=1) // (size // parts)]
    if hinted is not None:
        rank = np.searchsorted(program.gpus, np.take_along_axis(hinted, program.members, axis=1))
        rank = np.minimum(rank, program.gpus.size - 1) // (program.gpus.size // parts)
        if all((np.bincount(row, minlength=parts) == size // parts).all() for row in rank):
            candidates.append(rank)

    def crossings(part: IntArray) -> float:
        return float((flow * (part[:-1, :, None] != part[1:, None, :])).sum())

    best = min(candidates, key=crossings)
    label = np.arange(parts)
    label[[0, best[0, 0]]] = best[0, 0], 0
    return label[best]


def _build(flow: FloatArray, start: IntArray, parts: int) -> tuple[Any, Literals]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    size = start.shape[1]
    place = [[[model.new_bool_var("") for _ in range(parts)] for _ in range(size)] for _ in start]
    for layer, row in zip(place, start.tolist(), strict=True):
        for literals, part in zip(layer, row, strict=True):
            model.add_exactly_one(literals)
            for index, literal in enumerate(literals):
                model.add_hint(literal, index == part)
        for column in zip(*layer, strict=True):
            model.add(sum(column) == size // parts)
    model.add_bool_and([place[0][0][0]])
    held = (start[:, :, None] == np.arange(parts)).astype(np.float64)
    terms = add_crossings(model, place, PRICES * flow, 1.0 - np.eye(parts), size // parts, held)
    prices, literals = zip(*terms, strict=True) if terms else ((), ())
    model.minimize(cp_model.LinearExpr.weighted_sum(literals, prices))
    return model, place
