"""Every rule of a pods plan, from its placements alone: devices, amounts, places, company, gangs. No solver in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from formulations.pod_packing.check_moves import check_moves, numa_capacity, numa_share
from formulations.pod_packing.problem import Near, PodsProblem, Spread
from planner.cost.verdict import Violation
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import PodsPlan


def check(problem: PodsProblem, plan: PodsPlan) -> list[Violation]:
    """Broken rules, those that keep the plan from being read at all first and alone."""
    unreadable = list(_names(problem, plan))
    if unreadable:
        return unreadable
    where = _where(problem, plan)
    return [
        *_running(problem, plan, where),
        *check_moves(problem, plan),
        *_allowed(problem, where),
        *_amounts(problem, where),
        *_devices(problem, plan),
        *_numa(problem, plan, where),
        *_near(problem, where),
        *_spread(problem, where),
        *_gangs(problem, where),
        *_everything(problem, plan),
        *_remedies(problem, plan),
    ]


def _broken(
    rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None
) -> Violation:
    return Violation(rule=rule, subject=subject, message=message, amount=amount, limit=limit)


def _where(problem: PodsProblem, plan: PodsPlan) -> dict[int, int]:
    """Node of each placed pod."""
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    nodes = {name: index for index, name in enumerate(problem.node_names)}
    return {pods[one.pod]: nodes[one.node] for one in plan.placements}


def _names(problem: PodsProblem, plan: PodsPlan) -> Iterator[Violation]:
    """Every pod is told once, and every name is known."""
    told = Counter([one.pod for one in plan.placements] + [one.pod for one in plan.unplaced])
    for name, count in told.items():
        if count > 1:
            yield _broken("pod", name, f"{name} is told {count} times")
    for name in problem.pod_names:
        if name not in told:
            yield _broken("pod", name, f"{name} is neither placed nor unplaced")
    yield from _unknown(problem, plan)


def _unknown(problem: PodsProblem, plan: PodsPlan) -> Iterator[Violation]:
    """Pods and nodes that the instance does not have."""
    pods, nodes = set(problem.pod_names), set(problem.node_names)
    for name in [*(one.pod for one in plan.placements), *(one.pod for one in plan.unplaced)]:
        if name not in pods:
            yield _broken("pod", name, f"{name} is no pod of the instance")
    for one in plan.placements:
        if one.node not in nodes:
            yield _broken("node", one.pod, f"{one.pod} is on {one.node}, which is no node of the instance")


def _running(problem: PodsProblem, plan: PodsPlan, where: dict[int, int]) -> Iterator[Violation]:
    """Gated pods take no part; without leave (`check_moves`) running pods stay on their nodes and devices."""
    told = {one.pod: one for one in plan.placements}
    for pod, name in enumerate(problem.pod_names):
        node = int(problem.pod_node[pod])
        if node < 0:
            if problem.waiting[pod] and pod in where:
                yield _broken("gate", name, f"{name} has a place, but waits for {problem.waiting[pod]}")
            if pod in where and told[name].running:
                yield _broken("running", name, f"{name} is said to run, but it is pending")
            continue
        if problem.leave is not None:
            continue
        if where.get(pod) != node:
            yield _broken("running", name, f"{name} runs on {problem.node_names[node]} and must stay there")
        elif {share.index for share in told[name].gpus} != set(problem.pod_devices[pod]) or not told[name].running:
            yield _broken("running", name, f"{name} runs already, on devices {problem.pod_devices[pod]}")


def _allowed(problem: PodsProblem, where: dict[int, int]) -> Iterator[Violation]:
    """Selectors, taints, GPU kind and model, and nodes that take no pods; running pods were let in before."""
    for pod, node in where.items():
        if problem.pod_node[pod] < 0 and not problem.allowed[problem.pod_class[pod], node]:
            name = problem.pod_names[pod]
            yield _broken("allowed", name, f"{name} may not run on {problem.node_names[node]}")


def _amounts(problem: PodsProblem, where: dict[int, int]) -> Iterator[Violation]:
    """No node gives more of a resource than it has."""
    used = np.zeros_like(problem.capacity)
    for pod, node in where.items():
        used[node] += problem.request[problem.pod_class[pod]]
    for node, r in np.argwhere(used > problem.capacity).tolist():
        amount, limit = int(used[node, r]), int(problem.capacity[node, r])
        name = problem.node_names[node]
        message = f"{name} gives {amount} of {problem.resources[r]}, it has {limit}"
        yield _broken("amount", name, message, amount, limit)


def _devices(problem: PodsProblem, plan: PodsPlan) -> Iterator[Violation]:
    """Each pod has the devices that it asks for, and no device gives more than the whole of itself."""
    nodes = {name: index for index, name in enumerate(problem.node_names)}
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    given: dict[tuple[int, int], int] = defaultdict(int)
    for one in plan.placements:
        j, node = int(problem.pod_class[pods[one.pod]]), nodes[one.node]
        gpus, milli = int(problem.class_gpus[j]), int(problem.class_milli[j])
        shares = [(share.index, share.gpu_milli) for share in one.gpus]
        if len(dict(shares)) != gpus or len(shares) != gpus or any(share != milli for _, share in shares):
            yield _broken("devices", one.pod, f"{one.pod} asks for {gpus} devices, {milli} thousandths of each")
        if problem.bound[j] and problem.island is not None and problem.pod_node[pods[one.pod]] < 0:
            islands = {index // int(problem.island[node]) for index, _ in shares}
            if len(islands) > 1:
                yield _broken("island", one.pod, f"{one.pod} has GPUs of {len(islands)} islands of {one.node}")
        for index, share in shares:
            if index >= problem.gpus[node]:
                message = f"{one.pod} is on device {index} of {one.node}, which has {problem.gpus[node]}"
                yield _broken("devices", one.pod, message)
            given[node, index] += share
    for (node, index), milli in given.items():
        if milli > WHOLE_MILLI:
            name = problem.node_names[node]
            message = f"device {index} of {name} gives {milli} thousandths of itself"
            yield _broken("device_full", name, message, milli, WHOLE_MILLI)


def _numa(problem: PodsProblem, plan: PodsPlan, where: dict[int, int]) -> Iterator[Violation]:
    """Each VM is on as many NUMA nodes as it asks for, and none of them gives more cores or memory than it has."""
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    if problem.numa is None:
        for one in plan.placements:
            if one.numa:
                yield _broken("numa", one.pod, f"{one.pod} has NUMA nodes, which the instance does not know")
        return
    if plan.unplaced:
        yield _broken("everything", plan.unplaced[0].pod, f"{len(plan.unplaced)} pods have no place")
    used = {(node, h): np.zeros_like(problem.capacity[0]) for node in range(problem.num_nodes) for h in range(2)}
    for one in plan.placements:
        pod = pods[one.pod]
        j, node = int(problem.pod_class[pod]), where[pod]
        wide, many = int(problem.numa.width[j]), int(problem.numa.count[node])
        if len(set(one.numa)) != wide or len(one.numa) != wide or not all(0 <= h < many for h in one.numa):
            yield _broken("numa", one.pod, f"{one.pod} asks for {wide} of the {many} NUMA nodes of {one.node}")
            continue
        for h in one.numa:
            used[node, h] += numa_share(problem, j)
    for (node, h), amounts in used.items():
        if (amounts > numa_capacity(problem, node, h)).any():
            name = problem.node_names[node]
            yield _broken("numa_full", name, f"NUMA node {h} of {name} gives more than it has")


def _count(problem: PodsProblem, rule: Near | Spread, pods: dict[int, int]) -> Counter[int]:
    """Pods by domain of the rule's topology; those on nodes without the label are in none."""
    domain = problem.domain[rule.topology]
    return Counter(int(domain[node]) for node in pods.values() if domain[node] >= 0)


def _meant(problem: PodsProblem, rule: Near | Spread, where: dict[int, int]) -> dict[int, int]:
    return {pod: node for pod, node in where.items() if rule.matches[problem.pod_class[pod]]}


def _near(problem: PodsProblem, where: dict[int, int]) -> Iterator[Violation]:
    """Pods with an affinity have the company that they need, pods with an anti-affinity none of what they avoid."""
    for rule in problem.near:
        owners = {pod: node for pod, node in where.items() if problem.pod_class[pod] == rule.owner}
        meant = _meant(problem, rule, where)
        domain = problem.domain[rule.topology]
        company = _count(problem, rule, meant)
        if not rule.together:
            own = bool(rule.matches[rule.owner])
            for pod, node in owners.items():
                others = company[int(domain[node])] - own
                fresh = problem.pod_node[pod] < 0 or any(
                    problem.pod_node[other] < 0 and domain[at] == domain[node] for other, at in meant.items()
                )
                if domain[node] >= 0 and others > 0 and fresh:
                    name = problem.pod_names[pod]
                    yield _broken("anti_affinity", name, f"{name} on {problem.node_names[node]} breaks {rule.text}")
            continue
        fresh_owners = {pod: node for pod, node in owners.items() if problem.pod_node[pod] < 0}
        besides = _count(problem, rule, {pod: node for pod, node in meant.items() if pod not in fresh_owners})
        begins = rule.matches[rule.owner] and not any(problem.pod_node[pod] >= 0 for pod in meant)
        alone: set[int] = set()
        for pod, node in fresh_owners.items():
            name = problem.pod_names[pod]
            if domain[node] < 0:
                yield _broken("affinity", name, f"{problem.node_names[node]} has no label for {rule.text}")
            elif not besides[int(domain[node])]:
                alone.add(int(domain[node]))
        if len(alone) > int(begins):
            name = problem.pod_names[next(iter(fresh_owners))]
            yield _broken("affinity", name, f"{rule.text}: {len(alone)} domains have no such pods")


def _spread(problem: PodsProblem, where: dict[int, int]) -> Iterator[Violation]:
    """In each domain with a new pod of the rule, no more than max_skew above the emptiest domain."""
    for rule in problem.spread:
        domain = problem.domain[rule.topology]
        counts = _count(problem, rule, _meant(problem, rule, where))
        domains = {int(one) for one in domain[rule.counted] if one >= 0}
        least = min((counts[one] for one in domains), default=0)
        if len(domains) < rule.min_domains:
            least = 0
        for pod, node in where.items():
            if problem.pod_class[pod] != rule.owner or problem.pod_node[pod] >= 0:
                continue
            skew = counts[int(domain[node])] - least
            if domain[node] < 0 or skew > rule.max_skew:
                name = problem.pod_names[pod]
                yield _broken("spread", name, f"{name} on {problem.node_names[node]}: {rule.text}", skew, rule.max_skew)


def _gangs(problem: PodsProblem, where: dict[int, int]) -> Iterator[Violation]:
    """A gang that gets a pod gets at least its least number."""
    total: Counter[int] = Counter()
    fresh: Counter[int] = Counter()
    for pod in where:
        gang = int(problem.gang[problem.pod_class[pod]])
        total[gang] += 1
        fresh[gang] += int(problem.pod_node[pod] < 0)
    for gang, name in enumerate(problem.gang_names):
        if fresh[gang] and total[gang] < problem.gang_least[gang]:
            least = int(problem.gang_least[gang])
            yield _broken("gang", name, f"{total[gang]} pods of {name} run, it needs {least}", total[gang], least)


def _everything(problem: PodsProblem, plan: PodsPlan) -> Iterator[Violation]:
    """Consolidation leaves nothing out."""
    if problem.objective == "consolidate":
        waiting = {name for name, gates in zip(problem.pod_names, problem.waiting, strict=True) if gates}
        left = [one.pod for one in plan.unplaced if one.pod not in waiting]
        if left:
            yield _broken("everything", left[0], f"{len(left)} pods have no place", len(left), 0)


def _remedies(problem: PodsProblem, plan: PodsPlan) -> Iterator[Violation]:
    """After the moves of a remedy its pods have room where they are said to go."""
    for remedy in plan.remedies:
        if remedy.way != "moves":
            continue
        after = {one.pod: one for one in plan.placements}
        for move in remedy.moves:
            if move.pod in after:
                after[move.pod] = after[move.pod].model_copy(update={"node": move.to_node, "gpus": move.gpus})
        after |= {one.pod: one for one in remedy.placements}
        helped = plan.model_copy(update={"placements": tuple(after.values())})
        unknown = list(_unknown(problem, helped))
        where = {} if unknown else _where(problem, helped)
        broken = unknown or [
            *_allowed(problem, where), *_amounts(problem, where), *_devices(problem, helped), *_near(problem, where),
            *_spread(problem, where), *_gangs(problem, where),
        ]  # fmt: skip
        for one in broken[:1]:
            yield _broken("remedy", remedy.pods[0], f"moves that would place {remedy.pods[0]}: {one.message}")
