"""Exact expert placement by CP-SAT, even split; each layer alone, or all in one model where they meet.

Sets    l layers, e and f experts, g and h GPUs, s scenarios, r = 1 .. R replicas, k distance levels,
        b groups of experts, n nodes
Data    load[s,l,e], weight[s], speed[g], slots = slots per GPU, flow[l,e,f] = fraction of tokens from e to f,
        cost[g,h] as a sum over k of step[k] where h is not near g at level k; m = move cost, old[l,e,g]
Variables (binary unless said otherwise)
        place[l,e,g]        expert e has a replica on GPU g
        choice[l,e,r]       e has r replicas
        product[l,e,r,g]    e has r replicas, one of them on g
        top[l,s]            integer, scaled load of the hottest GPU
        used[l,b,n]         group b has a replica on node n
        crossing[l,e,f,k]   f in layer l + 1 is not near e in layer l
Objective   minimise  sum_{l,s} weight[s] top[l,s]  +  m sum (place where old = 0)
                      +  chain weight * sum flow[l,e,f] step[k] crossing[l,e,f,k]
Constraints
    filled      sum_e place[l,e,g] = slots
    replicas    sum_r choice = 1;  sum_g product[l,e,r,g] = r choice[l,e,r];  sum_r product = place;
                product <= choice
    hottest     top[l,s] >= sum_{e,r} load[s,l,e] / r / speed[g] product[l,e,r,g];
                top[l,s] >= its bound of bounds.py
    groups      place[l,e,g] <= used[l,group of e,node of g];  sum_n used <= group_spread
    moves       sum (place where old = 0) <= max_moves
    chain       crossing >= sum_{g in a} place[l,e,g] - sum_{h near a} place[l+1,f,h] for GPUs a with one
                neighbourhood; at most slots * |near| experts f are near e, and at most as many e near f
    twins       GPUs whose exchange changes nothing are ordered by the first expert of layer 0 that they hold

Rounding    Every price is multiplied by `scale` and rounded down, so no placement costs more in the model
            than it really does: a bound of the model, divided by `scale`, is a bound of the real problem as
            it is. It is too low by at most (prices that add up) / scale = RESOLUTION a part, half of the
            tolerance at which an optimum counts as proven.
Refused     split lp, fan-out, a chain with replicas, and models above exact.MAX_VARIABLES.
Work limit  deterministic seconds for each part.
Reference   The load model is EPLB's (github.com/deepseek-ai/EPLB) with distinct GPUs; the chain model is that
            of MoETuner (arXiv 2502.06643) and ExFlow (arXiv 2401.08383).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from formulations.backends.cpsat import solve_cpsat
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.crossings import Literals, add_crossings, read_place, round_down
from formulations.expert_placement.exact import (
    PartAnswer,
    joint,
    num_crossings,
    refuse_unsupported,
    replica_limit,
    search_parts,
)
from formulations.expert_placement.exact_structure import (
    canonical,
    expert_order,
    rows_of,
    twin_order,
)
from formulations.expert_placement.problem import ExpertPlacementProblem, refuse
from formulations.outcome import TOLERANCE, Budget, SearchResult, SolveOptions, Stop
from planner.cost.expert_parallel import membership
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

#: Real units by which the model may price a part's placement too low.
RESOLUTION = TOLERANCE / 2


def search(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, hint: ExpertPlacement | None
) -> SearchResult[ExpertPlacement]:
    """Proven placements of small instances. Raises OptionError for what is refused (module docstring)."""
    refuse(problem.split == "lp", "cp-sat", "prices the even split only (milp has the LP split)")
    layers = problem.num_layers if joint(problem) else 1
    placements = layers * problem.num_experts * problem.num_gpus
    refuse_unsupported(problem, "cp-sat", placements * replica_limit(problem) + num_crossings(problem))
    return search_parts(problem, options, budget, hint, _solve_part)


def _solve_part(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, start: IntArray | None
) -> PartAnswer:
    started_s = time.perf_counter()
    scale = _scale(problem)
    model, place = _build(problem, scale, start)
    build_s = time.perf_counter() - started_s
    result, read = solve_cpsat(
        model,
        budget,
        options,
        scale=1.0 / scale,
        exact=False,
        unscale_bound=lambda value: value / scale,
        # At the default level the crossing clauses of a chain stay out of the LP, and its bound stays at nothing.
        linearization_level=2 if problem.chain_weight else None,
    )
    optimal = result.has_solution and result.stop is Stop.HEURISTIC
    return PartAnswer(
        status=result.status,
        stop=result.stop,
        rows=None if read is None else rows_of(read_place(place, read), problem.slots_per_gpu),
        bound=result.bound,
        solver=result.solver,
        solver_version=result.solver_version,
        claimed=result.objective if optimal else None,
        build_s=build_s,
    )


def _scale(problem: ExpertPlacementProblem) -> int:
    """Model units per real unit: the number of prices that add up in any placement, over RESOLUTION."""
    prices = problem.num_layers * problem.num_scenarios * (problem.slots_per_gpu + 1) + num_crossings(problem)
    if problem.current is not None:
        prices += problem.num_layers * problem.num_slots
    return math.ceil(prices / RESOLUTION)


@dataclass(slots=True)
class _Model:
    """A model being written: every variable comes with its value in the start, if there is one."""

    model: cp_model.CpModel
    problem: ExpertPlacementProblem
    scale: int
    started: bool
    held: FloatArray  # [L, E, G], the start, or zeros
    objective: list[tuple[int, Any]]

    def literal(self, value: float) -> Any:
        variable = self.model.new_bool_var("")
        if self.started:
            self.model.add_hint(variable, int(value > 0.5))
        return variable


def _build(problem: ExpertPlacementProblem, scale: int, start: IntArray | None) -> tuple[cp_model.CpModel, Literals]:
    """The whole model, and its placement literals."""
    from ortools.sat.python import cp_model

    shape = (problem.num_layers, problem.num_experts, problem.num_gpus)
    held = np.zeros(shape) if start is None else canonical(problem, start)
    build = _Model(cp_model.CpModel(), problem, scale, start is not None, held, [])
    place = [[[build.literal(value) for value in row] for row in layer] for layer in held]
    _filled(build, place)
    _hottest(build, _replicas(build, place))
    _groups(build, place)
    _moves(build, place)
    if problem.chain_weight and problem.communication is not None:
        price = problem.transitions * (problem.chain_weight * scale)
        hints = held if build.started else None
        build.objective += add_crossings(
            build.model, place, price, problem.communication.cost, problem.slots_per_gpu, hints
        )
    _twins(build, place)
    coefficients, variables = zip(*build.objective, strict=True)
    build.model.minimize(cp_model.LinearExpr.weighted_sum(variables, coefficients))
    return build.model, place


def _filled(build: _Model, place: Literals) -> None:
    for layer in place:
        for column in zip(*layer, strict=True):
            build.model.add(sum(column) == build.problem.slots_per_gpu)


def _replicas(build: _Model, place: Literals) -> list[list[list[Sequence[Any]]]]:
    """product[l][e][r - 1][g]; without spare slots it is the placement itself."""
    model, most = build.model, replica_limit(build.problem)
    result: list[list[list[Sequence[Any]]]] = []
    for layer, experts in enumerate(place):
        result.append([])
        for expert, row in enumerate(experts):
            if most == 1:
                model.add_exactly_one(row)
                result[-1].append([row])
                continue
            held = build.held[layer, expert]
            choice = [build.literal(held.sum() == r) for r in range(1, most + 1)]
            model.add_exactly_one(choice)
            product = [[build.literal(v and held.sum() == r) for v in held] for r in range(1, most + 1)]
            for r, chosen in enumerate(choice, start=1):
                model.add(sum(product[r - 1]) == r * chosen)
                for literal in product[r - 1]:
                    model.add_implication(literal, chosen)
            for gpu, literal in enumerate(row):
                model.add(sum(products[gpu] for products in product) == literal)
            result[-1].append(list(product))
    return result


def _hottest(build: _Model, product: list[list[list[Sequence[Any]]]]) -> None:
    from ortools.sat.python import cp_model

    problem = build.problem
    bound = load_bound(problem)[0]
    replicas = np.arange(1, replica_limit(problem) + 1)
    for scenario in range(problem.num_scenarios):
        for layer in range(problem.num_layers):
            real = build.scale * problem.weight[scenario] * problem.load[scenario, layer][:, None] / replicas
            price = round_down(real[:, :, None] / problem.speed)  # [E, R, G]
            low = int(round_down(build.scale * problem.weight[scenario] * bound[scenario, layer]))
            high = max(low, int(price.max(axis=1).sum(axis=0).max()))
            top = build.model.new_int_var(low, high, "")
            held, count = build.held[layer], build.held[layer].sum(axis=1).astype(np.int64)
            if build.started:
                level = (price[np.arange(count.size), count - 1] * held).sum(axis=0)
                build.model.add_hint(top, max(low, int(level.max())))
            for gpu in range(problem.num_gpus):
                literals = [row[gpu] for expert in product[layer] for row in expert]
                total = cp_model.LinearExpr.weighted_sum(literals, price[:, :, gpu].ravel().tolist())
                build.model.add(total <= top)
            build.objective.append((1, top))


def _groups(build: _Model, place: Literals) -> None:
    problem = build.problem
    if problem.group_of is None or problem.group_spread is None:
        return
    for layer, experts in enumerate(place):
        for group in range(int(problem.group_of.max()) + 1):
            members = np.flatnonzero(problem.group_of == group)
            here = build.held[layer, members].any(axis=0).reshape(problem.num_nodes, -1).any(axis=1)
            used = [build.literal(value) for value in here]
            build.model.add(sum(used) <= problem.group_spread)
            for expert in members.tolist():
                for gpu, literal in enumerate(experts[expert]):
                    build.model.add_implication(literal, used[problem.node_of[gpu]])


def _moves(build: _Model, place: Literals) -> None:
    problem = build.problem
    if problem.current is None:
        return
    old = membership(problem.current, problem.num_experts, problem.num_gpus)
    moved = [place[layer][expert][gpu] for layer, expert, gpu in np.argwhere(old == 0)]
    if problem.max_moves is not None:
        build.model.add(sum(moved) <= problem.max_moves)
    price = int(round_down(build.scale * problem.move_cost))
    build.objective += [(price, literal) for literal in moved]


def _twins(build: _Model, place: Literals) -> None:
    # Later experts are hardly ever the first of a GPU, and these rows grow with their square.
    order = expert_order(build.problem)[: build.problem.num_gpus].tolist()
    for before, after in twin_order(build.problem):
        for rank, expert in enumerate(order):
            earlier = [place[0][other][before] for other in order[: rank + 1]]
            build.model.add_bool_or([*earlier, ~place[0][expert][after]])
