"""Exact expert placement as a mixed-integer linear program, for HiGHS (`milp`) and CBC (`milp-cbc`).

Sets    l layers, e and f experts, g and h GPUs, s scenarios, r = 1 .. R replicas, k distance levels,
        b groups of experts, n nodes
Data    load[s,l,e], weight[s], speed[g], slots = slots per GPU, flow[l,e,f] = fraction of tokens from e to f,
        cost[g,h] as a sum over k of step[k] where h is not near g at level k; m = move cost, old[l,e,g]
Variables
        place[l,e,g]        binary: expert e has a replica on GPU g
        top[l,s]            time of the hottest GPU
        choice[l,e,r]       binary: e has r replicas                            (even split)
        product[l,e,r,g]    e has r replicas, one of them on g                  (even split; whole by itself)
        sent[l,s,e,g]       load of e that g computes                           (lp split)
        used[l,b,n]         group b has a replica on node n                     (whole by itself)
        crossing[l,e,f,k]   f in layer l + 1 is not near e in layer l           (whole by itself)
Objective   minimise  sum_{l,s} weight[s] top[l,s]  +  m sum (place where old = 0)
                      +  chain weight * sum flow[l,e,f] step[k] crossing[l,e,f,k]
Constraints
    filled      sum_e place[l,e,g] = slots;  sum_g place[l,e,g] >= 1
    even        sum_r choice = 1;  sum_g product[l,e,r,g] = r choice[l,e,r];  sum_r product = place;
                product <= choice;  sum_{e,r} load[s,l,e] / r / speed[g] product[l,e,r,g] <= top[l,s]
    lp          sum_g sent[l,s,e,g] = load[s,l,e];  sent <= load place;
                sum_e sent[l,s,e,g] / speed[g] <= top[l,s]
    groups      place[l,e,g] <= used[l,group of e,node of g];  sum_n used <= group_spread
    moves       sum (place where old = 0) <= max_moves
    chain       crossing >= sum_{g in a} place[l,e,g] - sum_{h near a} place[l+1,f,h] for GPUs a with one
                neighbourhood; at most slots * |near| experts f are near e, and at most as many e near f
    twins       GPUs whose exchange changes nothing are ordered by the first expert of layer 0 that they hold

The lower bound of `top` is that of bounds.py. The solvers' bounds are lowered by what their tolerances allow.
Refused     fan-out, a chain with replicas, and models above exact.MAX_VARIABLES.
Work limit  nodes for each part.
Reference   The LP split is LPLB's (github.com/deepseek-ai/LPLB), with free placement; else as in cpsat.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.crossings import add_crossing_columns
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
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Budget, SearchResult, SolveOptions
from planner.cost.expert_parallel import gpu_load, hottest, membership
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

#: Model units per real unit: HiGHS stops at absolute differences of 1e-6.
SCALE = 1_000.0
#: Relative error that the solvers' feasibility tolerances (1e-7 a row) leave in a bound.
SOLVER_ERROR = 2e-7


def search(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, hint: ExpertPlacement | None
) -> SearchResult[ExpertPlacement]:
    """Proven placements of small instances; options.method `milp-cbc` takes CBC, anything else HiGHS.

    Raises OptionError for what the module docstring says is refused.
    """
    layers = problem.num_layers if joint(problem) else 1
    each = replica_limit(problem) if problem.split == "even" else 1 + problem.num_scenarios
    placements = layers * problem.num_experts * problem.num_gpus
    refuse_unsupported(problem, options.method or "milp", placements * each + num_crossings(problem))
    return search_parts(problem, options, budget, hint, _solve_part, SCALE)


def _solve_part(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, start: IntArray | None
) -> PartAnswer:
    started_s = time.perf_counter()
    model, variables = build(problem)
    values = None if start is None else _start(problem, model, variables, start)
    build_s = time.perf_counter() - started_s
    solve = solve_linear_pulp if options.method == "milp-cbc" else solve_linear_mathopt
    result, read = solve(model, budget, options, start=values)
    bound = None if result.bound is None else result.bound / SCALE
    return PartAnswer(
        status=result.status,
        stop=result.stop,
        rows=None if read is None else rows_of(read[variables.place], problem.slots_per_gpu),
        bound=None if bound is None else bound - SOLVER_ERROR * max(1.0, abs(bound)),
        solver=result.solver,
        solver_version=result.solver_version,
        build_s=build_s,
    )


@dataclass(slots=True)
class _Variables:
    """Columns of the blocks, shaped as in the module docstring; None where the model has no such block."""

    place: IntArray
    top: IntArray
    choice: IntArray | None = None
    product: IntArray | None = None
    used: IntArray | None = None


def build(problem: ExpertPlacementProblem) -> tuple[LinearModel, _Variables]:
    """The model of a problem, objective times SCALE."""
    model = LinearBuilder()
    shape = (problem.num_layers, problem.num_experts, problem.num_gpus)
    old = np.ones(shape)
    if problem.current is not None:
        old = membership(problem.current, problem.num_experts, problem.num_gpus)
    variables = _Variables(
        place=model.variables(shape, integer=True, cost=SCALE * problem.move_cost * (old == 0)),
        top=model.variables(
            (problem.num_layers, problem.num_scenarios),
            lower=load_bound(problem)[0].T,
            upper=np.inf,
            cost=SCALE * problem.weight,
        ),
    )
    _filled(model, problem, variables.place)
    if problem.split == "lp":
        _lp_split(model, problem, variables)
    else:
        _even_split(model, problem, variables)
    _groups(model, problem, variables)
    if problem.max_moves is not None and problem.current is not None and (old == 0).any():
        model.rows(-np.inf, problem.max_moves, (variables.place[old == 0][None], 1.0))
    if problem.chain_weight and problem.communication is not None:
        price = SCALE * problem.chain_weight * problem.transitions
        add_crossing_columns(model, variables.place, price, problem.communication.cost, problem.slots_per_gpu)
    _twins(model, problem, variables.place)
    return model.build(), variables


def _filled(model: LinearBuilder, problem: ExpertPlacementProblem, place: IntArray) -> None:
    slots = problem.slots_per_gpu
    model.rows(slots, slots, (place.transpose(0, 2, 1).reshape(-1, problem.num_experts), 1.0))
    most = 1.0 if problem.num_slots == problem.num_experts else np.inf
    model.rows(1.0, most, (place.reshape(-1, problem.num_gpus), 1.0))


def _even_split(model: LinearBuilder, problem: ExpertPlacementProblem, variables: _Variables) -> None:
    num_layers, num_experts, num_gpus = variables.place.shape
    most = replica_limit(problem)
    replicas = np.arange(1, most + 1)
    product = variables.place[:, :, None, :]
    if most > 1:
        choice = model.variables((num_layers, num_experts, most), integer=True)
        product = model.variables((num_layers, num_experts, most, num_gpus))
        variables.choice, variables.product = choice, product
        model.rows(1.0, 1.0, (choice.reshape(-1, most), 1.0))
        count = np.broadcast_to(replicas, choice.shape).reshape(-1, 1)
        model.rows(0.0, 0.0, (product.reshape(-1, num_gpus), 1.0), (choice.reshape(-1, 1), -count))
        by_gpu = product.transpose(0, 1, 3, 2).reshape(-1, most)
        model.rows(0.0, 0.0, (by_gpu, 1.0), (variables.place.reshape(-1, 1), -1.0))
        each = np.repeat(choice.reshape(-1, 1), num_gpus, axis=0)
        model.rows(-np.inf, 0.0, (product.reshape(-1, 1), 1.0), (each, -1.0))
    share = problem.load.transpose(1, 0, 2)[:, :, None, :, None] / replicas / problem.speed[:, None, None]
    columns = np.broadcast_to(product.transpose(0, 3, 1, 2)[:, None], share.shape)  # [L, K, G, E, R]
    rows = num_layers * problem.num_scenarios * num_gpus
    top = np.repeat(variables.top.reshape(-1, 1), num_gpus, axis=0)
    model.rows(-np.inf, 0.0, (columns.reshape(rows, -1), share.reshape(rows, -1)), (top, -1.0))


def _lp_split(model: LinearBuilder, problem: ExpertPlacementProblem, variables: _Variables) -> None:
    load = problem.load.transpose(1, 0, 2)  # [L, K, E]
    sent = model.variables((*load.shape, problem.num_gpus), upper=load[..., None])
    model.rows(load.ravel(), load.ravel(), (sent.reshape(load.size, -1), 1.0))
    place = np.broadcast_to(variables.place[:, None], sent.shape).reshape(-1, 1)
    most = np.broadcast_to(load[..., None], sent.shape).reshape(-1, 1)
    model.rows(-np.inf, 0.0, (sent.reshape(-1, 1), 1.0), (place, -most))
    by_gpu = sent.transpose(0, 1, 3, 2).reshape(-1, problem.num_experts)
    pace = np.tile(1.0 / problem.speed, load.shape[0] * load.shape[1])[:, None]
    top = np.repeat(variables.top.reshape(-1, 1), problem.num_gpus, axis=0)
    model.rows(-np.inf, 0.0, (by_gpu, np.broadcast_to(pace, by_gpu.shape)), (top, -1.0))


def _groups(model: LinearBuilder, problem: ExpertPlacementProblem, variables: _Variables) -> None:
    if problem.group_of is None or problem.group_spread is None:
        return
    num_groups = int(problem.group_of.max()) + 1
    used = model.variables((problem.num_layers, num_groups, problem.num_nodes))
    variables.used = used
    of_place = used[:, problem.group_of][:, :, problem.node_of]  # [L, E, G]
    model.rows(-np.inf, 0.0, (variables.place.reshape(-1, 1), 1.0), (of_place.reshape(-1, 1), -1.0))
    model.rows(-np.inf, problem.group_spread, (used.reshape(-1, problem.num_nodes), 1.0))


def _twins(model: LinearBuilder, problem: ExpertPlacementProblem, place: IntArray) -> None:
    # Later experts are hardly ever the first of a GPU, and these rows grow with their square.
    order = expert_order(problem)[: problem.num_gpus]
    for before, after in twin_order(problem):
        for rank, expert in enumerate(order):
            earlier = place[0, order[: rank + 1], before][None]
            model.rows(-np.inf, 0.0, (place[0, expert, after].reshape(1, 1), 1.0), (earlier, -1.0))


def _start(problem: ExpertPlacementProblem, model: LinearModel, variables: _Variables, rows: IntArray) -> FloatArray:
    """Values of a placement; what the solvers complete by themselves (flows and crossings) is NaN."""
    values = np.full(model.num_variables, np.nan)
    held = canonical(problem, rows)
    values[variables.place] = held
    load = gpu_load(problem.load, rows, problem.speed, problem.split)
    values[variables.top] = np.maximum(hottest(load, problem.speed).T, model.lower[variables.top])
    if variables.choice is not None and variables.product is not None:
        replicas = np.arange(1, variables.choice.shape[2] + 1)
        choice = held.sum(axis=2)[:, :, None] == replicas
        values[variables.choice] = choice
        values[variables.product] = choice[..., None] * held[:, :, None, :]
    if variables.used is not None and problem.group_of is not None:
        members = np.arange(variables.used.shape[1])[:, None] == problem.group_of
        by_node = held.reshape(*held.shape[:2], problem.num_nodes, -1).sum(axis=3)
        values[variables.used] = np.einsum("be,len->lbn", members, by_node) > 0
    return values
