"""MoETuner: balance each layer's clusters of experts, then map the clusters to GPUs; two integer programs.

Sets    l layers, e experts, c and d clusters (as many as GPUs), g and h GPUs
Data    load[l,e]    tokens routed, mean over the scenarios;  mean[l] = sum_e load[l,e] / clusters
        flow[l,c,d]  fraction of tokens from cluster c of layer l to cluster d of layer l + 1
        cost[g,h]    of sending a token from g to h (published: one over the bandwidth); 1 where none is given

Stage 1, for each layer
Variables   member[c,e] binary: expert e is in cluster c;  deviation[c] >= 0
Objective   minimise  sum_c deviation[c]
Constraints
    one cluster  sum_c member[c,e] = 1                (missing in print, clearly meant)
    equal        sum_e member[c,e] = slots per GPU    (needed by the plan format; in print sizes may differ)
    deviation    deviation[c] >= |sum_e load[l,e] member[c,e] - mean[l]|
    symmetry     clusters are alike, so they are ordered by the most loaded expert they hold

Stage 2, all layers
Variables   at[l,c,g] binary: cluster c of layer l lies on GPU g;  dearest[l] >= 0
Objective   minimise  sum_l dearest[l]                (as published; a plan is priced by the sum over pairs)
Constraints
    one to one   sum_g at[l,c,g] = 1;  sum_c at[l,c,g] = 1
    dearest      at[l,c,g] = 1  implies  dearest[l] >= sum_h flow[l,c,d] cost[g,h] at[l+1,d,h]    for each d

Without a trace stage 2 is skipped and cluster c lies on GPU c. Above MAX_ROWS (they grow with the cube of the
GPUs) stage 2 keeps its start: alternating transportation of the clusters.

Ignores     communication while it balances, scenarios beyond their mean, speeds, move cost, and replicas.
Refused     spare slots, group_spread, max_moves.
Work limit  deterministic seconds for each program.
Reference   Go and Mahajan, "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement and
            Token Routing", arXiv 2502.06643.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import solve_cpsat
from formulations.expert_placement.bounds import lower_bound
from formulations.expert_placement.crossings import read_place
from formulations.expert_placement.exact import last_stop
from formulations.expert_placement.greedy import pack, replicas_in_falling_size
from formulations.expert_placement.local_method import finished_plan
from formulations.expert_placement.problem import ExpertPlacementProblem, refuse
from formulations.expert_placement.transport import transport_start
from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

#: Integer units of an evenly loaded cluster; a finer balance is noise in any recording.
UNITS = 10_000
#: Rows of stage 2, GPUs ** 3 x (layers - 1), that build within seconds.
MAX_ROWS = 100_000
#: Share of the time for stage 1 when there is a stage 2.
BALANCE_SHARE = 0.5


def search(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, hint: ExpertPlacement | None
) -> SearchResult[ExpertPlacement]:
    """Balanced clusters, then their GPUs.

    A stage that finds nothing keeps its start, which the solver's name then says. Raises OptionError for what
    the module docstring says is refused.
    """
    refuse(problem.num_slots != problem.num_experts, "moetuner", "places each expert once: no spare slots")
    refuse(problem.group_spread is not None, "moetuner", "knows no group_spread")
    refuse(problem.max_moves is not None, "moetuner", "knows no max_moves")
    load = np.tensordot(problem.weight, problem.load, axes=1)
    mapped = problem.trace is not None and problem.num_layers > 1
    ends_s = budget.remaining_s * (1.0 - BALANCE_SHARE if mapped else 0.0)
    rows = _starts(problem, load, hint)
    stops: set[Stop] = set()
    notes = []
    kept = 0
    for layer in range(problem.num_layers):
        share_s = max(1e-3, (budget.remaining_s - ends_s) / (problem.num_layers - layer))
        found, stop = _balance(load[layer], rows[layer], problem, options, PartBudget(budget, share_s))
        stops.add(stop)
        kept += found is None
        rows[layer] = rows[layer] if found is None else found
    if kept:
        notes.append(f"{kept} of {problem.num_layers} layers kept the start's clusters")
    if mapped:
        rows, stop, note = _map(problem, rows, options, PartBudget(budget, max(1e-3, budget.remaining_s)))
        stops.add(stop)
        notes += [note] if note else []
    return SearchResult(
        status=Status.FEASIBLE,
        stop=last_stop(stops),
        plan=finished_plan(problem, rows),
        solver="cp-sat" + (f" ({'; '.join(notes)})" if notes else ""),
        solver_version=load_ortools_first(),
        bound=lower_bound(problem),
    )


def _starts(problem: ExpertPlacementProblem, load: FloatArray, hint: ExpertPlacement | None) -> IntArray:
    """Clusters to start from, [L, E]: for each layer the better balanced of the hint and LPT."""
    rows = pack(*replicas_in_falling_size(load, np.ones_like(load, dtype=np.int64)), problem.num_gpus)
    if hint is None:
        return rows

    def deviation(slots: IntArray) -> FloatArray:
        total = np.take_along_axis(load, slots, axis=1).reshape(len(load), problem.num_gpus, -1).sum(axis=2)
        return np.asarray(np.abs(total - total.mean(axis=1, keepdims=True)).sum(axis=1))

    once = (np.sort(hint.array, axis=1) == np.arange(problem.num_experts)).all(axis=1)
    better = once & (deviation(hint.array) < deviation(rows))
    return np.where(better[:, None], hint.array, rows)


def _balance(
    load: FloatArray, start: IntArray, problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget
) -> tuple[IntArray | None, Stop]:
    """Stage 1 of one layer: experts cluster by cluster, [E]; None when no solution came in time."""
    if (stop := budget.stop()) is not None:
        return None, stop
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    size, clusters = problem.slots_per_gpu, problem.num_gpus
    order = np.argsort(-load, kind="stable")
    units = np.rint(load[order] / max(load.mean() * size, 1e-300) * UNITS).astype(np.int64).tolist()
    # The start's clusters in the order that the symmetry rows ask for; experts by falling load from here on.
    rank = np.argsort(order)[start].reshape(clusters, size)
    cluster_of = np.empty(load.size, dtype=np.int64)
    cluster_of[rank[np.argsort(rank.min(axis=1))].ravel()] = np.repeat(np.arange(clusters), size)
    member = [[model.new_bool_var("") for _ in range(clusters)] for _ in range(load.size)]
    for row, cluster in zip(member, cluster_of.tolist(), strict=True):
        model.add_exactly_one(row)
        for index, literal in enumerate(row):
            model.add_hint(literal, index == cluster)
    deviations = []
    for index, column in enumerate(zip(*member, strict=True)):
        model.add(sum(column) == size)
        deviation = model.new_int_var(0, sum(units), "")
        total = cp_model.LinearExpr.weighted_sum(column, units)
        model.add(total - UNITS <= deviation)
        model.add(UNITS - total <= deviation)
        model.add_hint(deviation, abs(int(np.dot(units, cluster_of == index)) - UNITS))
        deviations.append(deviation)
    for expert in range(clusters):
        for cluster in range(1, clusters):
            earlier = [member[other][cluster - 1] for other in range(expert)]
            model.add_bool_or([*earlier, ~member[expert][cluster]])
    model.minimize(sum(deviations))
    result, read = solve_cpsat(model, budget, options)
    if read is None:
        return None, result.stop
    found = read_place([member], read)[0].argmax(axis=1)
    return order[np.argsort(found, kind="stable")], result.stop


def _map(
    problem: ExpertPlacementProblem, rows: IntArray, options: SolveOptions, budget: Budget
) -> tuple[IntArray, Stop, str]:
    """Stage 2: the same clusters [L, E] on other GPUs, why it ended, and a note when its start was kept."""
    shape = (problem.num_layers, problem.num_gpus, problem.slots_per_gpu)
    clusters = rows.reshape(shape)
    cost = 1.0 - np.eye(problem.num_gpus)
    if problem.communication is not None:
        cost = problem.communication.cost
    flow = np.zeros((problem.num_layers - 1, problem.num_gpus, problem.num_gpus))
    for layer, transitions in enumerate(problem.transitions):
        pairs = transitions[rows[layer]][:, rows[layer + 1]]
        flow[layer] = pairs.reshape(shape[1:] + shape[1:]).sum(axis=(1, 3))
    order = transport_start(flow, cost, np.ones(shape[:2]), problem.num_gpus, budget)
    note, stop = "", budget.stop() or Stop.HEURISTIC
    if problem.num_gpus**3 * len(flow) > MAX_ROWS:
        note = "stage 2 is too large: clusters mapped by transportation"
    else:
        found: IntArray | None = None
        if budget.stop() is None:
            model, at = _mapping_model(flow, cost, order)
            result, read = solve_cpsat(model, budget, options)
            stop = result.stop
            found = None if read is None else read_place(at, read).transpose(0, 2, 1).argmax(axis=2)
        note = "stage 2 kept its start" if found is None else ""
        order = order if found is None else found
    return np.take_along_axis(clusters, order[:, :, None], axis=1).reshape(rows.shape), stop, note


def _mapping_model(flow: FloatArray, cost: FloatArray, order: IntArray) -> tuple[Any, Any]:
    """Model and its literals at[l][c][g]; `order` [L, G] is the cluster that each GPU starts with."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    num_gpus = order.shape[1]
    start = np.argsort(order, axis=1)
    at = [[[model.new_bool_var("") for _ in range(num_gpus)] for _ in range(num_gpus)] for _ in start]
    for layer, row in zip(at, start.tolist(), strict=True):
        for literals, gpu in zip(layer, row, strict=True):
            model.add_exactly_one(literals)
            for index, literal in enumerate(literals):
                model.add_hint(literal, index == gpu)
        for column in zip(*layer, strict=True):
            model.add_exactly_one(column)
    price = flow[..., None, None] * cost
    units = np.rint(price * (UNITS / max(price.max(), 1e-300))).astype(np.int64)  # [L-1, c, d, g, h]
    dearest = []
    for step in range(len(flow)):
        top = model.new_int_var(0, int(units[step].max()), "")
        each = np.arange(num_gpus)
        started = units[step, each[:, None], each, start[step][:, None], start[step + 1]]
        model.add_hint(top, int(started.max()))
        dearest.append(top)
        for c, d in np.argwhere(flow[step] > 0).tolist():
            for literal, prices in zip(at[step][c], units[step, c, d].tolist(), strict=True):
                sent = cp_model.LinearExpr.weighted_sum(at[step + 1][d], prices)
                model.add(sent <= top).only_enforce_if(literal)
    model.minimize(sum(dearest))
    return model, at
