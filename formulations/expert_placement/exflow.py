"""ExFlow's affinity placement: integer programs that keep a token's consecutive experts on one GPU.

Sets    l layers, e and f experts, p parts (all GPUs, or the two halves of a set of GPUs)
Data    flow[l,e,f]  fraction of tokens whose best expert is e in layer l and f in layer l + 1
Variables (binary)
        place[l,e,p]     expert e of layer l lies in part p
        crossing[l,e,f]  e and f lie in different parts
Objective   minimise  sum flow[l,e,f] crossing[l,e,f]
Constraints
    one part    sum_p place[l,e,p] = 1
    equal       sum_e place[l,e,p] = experts / parts
    crossing    crossing[l,e,f] >= place[l,e,p] - place[l+1,f,p];  at most experts / parts f lie with e
    symmetry    parts are alike, so the first expert of the first layer lies in the first

As published, GPUs are bisected: halves first, then halves of halves, one program for each set. That needs a
power of two; otherwise, or on request, one program places the experts on all GPUs at once. The published
program has a binary for each token and layer; tokens with the same transition cross together, so
E**2 (L - 1) weights say the same.

Ignores     load (the plan is priced with it all the same), distances beyond "same part", every expert of a
            token but the best, and replicas.
Refused     spare slots, no trace, group_spread, max_moves, and programs above MAX_ROWS.
Work limit  nodes of HiGHS for each program.
Reference   Yao et al., "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model
            Inference", arXiv 2401.08383.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.expert_placement.bounds import lower_bound
from formulations.expert_placement.crossings import add_crossing_columns
from formulations.expert_placement.exact import last_stop
from formulations.expert_placement.local_method import finished_plan
from formulations.expert_placement.problem import ExpertPlacementProblem, refuse
from formulations.expert_placement.transport import transport_start
from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

#: Crossing constraints of the largest program (transitions that occur x parts); it builds in seconds.
MAX_ROWS = 200_000
#: Model units per token: HiGHS stops at absolute differences of 1e-6.
SCALE = 1_000.0


def search(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    budget: Budget,
    hint: ExpertPlacement | None,
    *,
    bisection: bool | None = None,
) -> SearchResult[ExpertPlacement]:
    """Few crossings, whatever the load. `bisection` None means where the number of GPUs is a power of two.

    A program without a solution in its share of the time keeps its start, which the solver's name then says.
    Raises OptionError for what the module docstring says is refused.
    """
    power = problem.num_gpus & (problem.num_gpus - 1) == 0
    if options.method == "exflow-direct":
        bisection = False
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
        work = program.work + sum(other.work for other in pending)
        own = program.members.shape[1] if halving else program.work
        share_s = budget.remaining_s * own / work
        part, stop = _solve(problem, program, options, PartBudget(budget, max(1e-3, share_s)), hinted)
        programs += 1
        kept += stop is None
        stops.add(stop or budget.stop() or Stop.TIME_LIMIT)
        pending.extend(program.split(part))
    return SearchResult(
        status=Status.FEASIBLE,
        stop=last_stop(stops),
        plan=finished_plan(problem, np.argsort(gpu_of, axis=1, kind="stable")),
        solver="highs" + (f" ({kept} of {programs} programs kept their start)" if kept else ""),
        solver_version=f"ortools {load_ortools_first()}",
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
        """1 once a single GPU is left."""
        return min(2, self.gpus.size) if self.halving else self.gpus.size

    @property
    def work(self) -> float:
        """Share of the time for this program and those it leads to: experts x halvings to come."""
        return float(self.members.shape[1] * math.log2(self.gpus.size))

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
    """Part of each member, [L, n]; and why the program ended, None when its start was kept."""
    members = program.members
    flow = np.zeros((len(members) - 1, members.shape[1], members.shape[1]))
    for layer, transitions in enumerate(problem.transitions):
        flow[layer] = transitions[np.ix_(members[layer], members[layer + 1])]
    start = _start(program, flow, budget, hinted)
    if budget.stop():
        return start, None
    model, place = _build(flow, (*members.shape, program.num_parts))
    values = np.full(model.num_variables, np.nan)
    values[place] = start[:, :, None] == np.arange(program.num_parts)
    result, read = solve_linear_mathopt(model, budget, options, start=values)
    if read is None:
        return start, None
    return np.asarray(read[place].argmax(axis=2)), result.stop


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

    crossings = [(flow * (part[:-1, :, None] != part[1:, None, :])).sum() for part in candidates]
    best = candidates[int(np.argmin(crossings))]
    label = np.arange(parts)
    label[[0, best[0, 0]]] = best[0, 0], 0
    return np.asarray(label[best])


def _build(flow: FloatArray, shape: tuple[int, int, int]) -> tuple[LinearModel, IntArray]:
    """Model, and its columns place [L, n, parts]."""
    model = LinearBuilder()
    _, size, parts = shape
    place = model.variables(shape, integer=True)
    model.rows(1.0, 1.0, (place.reshape(-1, parts), 1.0))
    model.rows(size // parts, size // parts, (place.transpose(0, 2, 1).reshape(-1, size), 1.0))
    model.rows(1.0, 1.0, (place[:1, 0, :1], 1.0))
    add_crossing_columns(model, place, SCALE * flow, 1.0 - np.eye(parts), size // parts)
    return model.build(), place
