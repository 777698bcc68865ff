"""Every rule of a deployment, from its decisions alone; numpy, no solver.

The fleet inside keeps the fleet's rules; what is told beside it must be that fleet: nodes, workers, shares; every
worker has its devices on nodes that are there, none is held twice or by what runs there; experts keep theirs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from formulations.deployment.experts import sharing
from formulations.deployment.placing import workers_in
from formulations.deployment.problem import DeployProblem
from formulations.deployment.rows import dearest, told_rows
from formulations.expert_placement.check import check as check_experts
from formulations.gpu_fleet.check import check as check_fleet
from planner.cost.verdict import Violation
from planner.deploy_plan import DeployedPod, DeployPlan, Step


def broken(rule: str, subject: str, message: str) -> Violation:
    """A broken rule."""
    return Violation(rule=rule, subject=subject, message=message)


def check(problem: DeployProblem, plan: DeployPlan) -> list[Violation]:
    """Broken rules; an empty list for a plan that keeps them all."""
    found = check_fleet(problem.fleet, plan.fleet)
    if found:
        return found
    if plan.hours != dearest(plan.fleet).hours:
        return [broken("hours", "plan", "the pods are not those of the most expensive hours")]
    found = [*_told(problem, plan), *_nodes(problem, plan), *check_alone(plan)]
    found += [*_pods(problem, plan), *_experts(problem, plan)]
    return found or list(_change(problem, plan))


def check_alone(plan: DeployPlan) -> list[Violation]:
    """Rules of nodes and pods that need no instance: everything is told once, and no device is held twice."""
    return [*_nodes_alone(plan), *_pods_alone(plan), *_workers_alone(plan)]


def _nodes_alone(plan: DeployPlan) -> Iterator[Violation]:
    names = Counter(name for row in plan.nodes for name in row.names)
    for name, number in names.items():
        if number > 1:
            yield broken("nodes", name, f"node {name} is told {number} times")
    for row in plan.nodes:
        name = str(row.offer if row.node is None else row.node)
        if (row.offer is None) == (row.node is None):
            yield broken("nodes", name, f"{name} is named neither as an offer nor as standing nodes, or as both")
        if len(row.names) != row.count:
            yield broken("nodes", name, f"{len(row.names)} nodes of {name} are named, {row.count} are counted")


def _pods_alone(plan: DeployPlan) -> Iterator[Violation]:
    home = {name: row for row in plan.nodes for name in row.names}
    held: dict[str, set[int]] = defaultdict(set)
    for pod in plan.pods:
        row = home.get(pod.node)
        if row is None:
            yield broken("pods", pod.pod, f"{pod.pod} is on {pod.node}, which is no node of the plan")
            continue
        if len(set(pod.gpus)) != len(pod.gpus) or (row.offer is not None and max(pod.gpus) >= row.gpus):
            yield broken("pods", pod.pod, f"{pod.pod} has devices {pod.gpus} of {pod.node}, which are not all free")
        twice = held[pod.node] & set(pod.gpus)
        if twice:
            yield broken("pods", pod.pod, f"{pod.pod} has devices {sorted(twice)} of {pod.node} that another has")
        held[pod.node] |= set(pod.gpus)
    names = Counter(pod.pod for pod in plan.pods)
    for name, number in names.items():
        if number > 1:
            yield broken("pods", name, f"pod {name} is told {number} times")


def _workers_alone(plan: DeployPlan) -> Iterator[Violation]:
    """Pods make up the workers that are counted, each with all of its parts and GPUs."""
    running: Counter[tuple[str, str, int]] = Counter()
    whole = 0
    for worker in workers_in(plan.pods):
        running[worker.key] += 1
        whole += len(worker.places)
    if whole != len(plan.pods):
        yield broken("pods", "plan", f"{len(plan.pods) - whole} pods are parts of workers that are not whole")
    told = Counter({(row.service, row.worker, row.num_gpus): row.count for row in plan.workers})
    for key in sorted(running.keys() | told.keys()):
        if running[key] != told[key]:
            service, name, gpus = key
            message = f"{running[key]} of {name} of {service} run with {gpus} GPUs, {told[key]} are told"
            yield broken("pods", name, message)


def _told(problem: DeployProblem, plan: DeployPlan) -> Iterator[Violation]:
    """Workers, shares and cost are those of the fleet."""
    workers, assignment = told_rows(problem, dearest(plan.fleet))
    if sorted(workers, key=str) != sorted(plan.workers, key=str):
        yield broken("workers", "plan", "the workers told are not those of the fleet")
    if sorted(assignment, key=str) != sorted(plan.assignment, key=str):
        yield broken("assignment", "plan", "the shares told are not those of the fleet")
    if abs(plan.cost_usd_per_hour - plan.fleet.cost_usd_per_hour) > 1e-6 * max(1.0, plan.fleet.cost_usd_per_hour):
        yield broken("cost", "plan", "the cost told is not that of the fleet")


def _nodes(problem: DeployProblem, plan: DeployPlan) -> Iterator[Violation]:
    """As many nodes of each offer as the fleet has, told as they are; standing ones exist."""
    fleet = problem.fleet
    counts: Counter[str] = Counter()
    for row in dearest(plan.fleet).allocation:
        counts[row.offer] += row.count
    told: Counter[str] = Counter()
    standing = {kind.offer.name: {node.name for node in kind.nodes} for kind in problem.standing}
    for node in plan.nodes:
        name = str(node.offer if node.node is None else node.node)
        if name not in fleet.offer_names or (node.node is not None) != (name in standing):
            yield broken("nodes", name, f"{name} is named neither as an offer nor as standing nodes, or as both")
            continue
        told[name] += node.count
        k = fleet.offer_names.index(name)
        known = fleet.described_offers[k].device, int(fleet.gpus[k])
        cost = float(fleet.price[k]) * node.count
        if (node.device, node.gpus) != known or abs(node.usd_per_hour - cost) > 1e-6 * max(1.0, cost):
            message = f"{name} is told as {node.gpus} x {node.device} at {node.usd_per_hour:g} USD/h, it is"
            yield broken("nodes", name, f"{message} {known[1]} x {known[0]} at {cost:g} USD/h")
        for unknown in sorted(set(node.names) - standing.get(name, set(node.names))):
            yield broken("nodes", name, f"there is no standing node {unknown!r} of {name}")
    if +told != +counts:
        yield broken("nodes", "plan", f"nodes {dict(told)} are told, the fleet has {dict(counts)}")


def _pods(problem: DeployProblem, plan: DeployPlan) -> Iterator[Violation]:
    """Workers run as often as the fleet has them, on one kind of node, each on one or on several whole ones."""
    standing = {node.name: set(node.devices) for kind in problem.standing for node in kind.nodes}
    for pod in plan.pods:
        if pod.node in standing and not set(pod.gpus) <= standing[pod.node]:
            yield broken("pods", pod.pod, f"{pod.pod} has devices {pod.gpus} of {pod.node}, which are not all free")
    home = {name: str(row.offer or row.node) for row in plan.nodes for name in row.names}
    size = dict(zip(problem.fleet.offer_names, problem.fleet.gpus.tolist(), strict=True))
    running: Counter[tuple[str, str, str, int]] = Counter()
    for worker in workers_in(plan.pods):
        homes = {home.get(node, "") for node, _ in worker.places}
        if len(homes) > 1:
            yield broken("pods", worker.name, f"{worker.name} is on nodes of several kinds: {', '.join(sorted(homes))}")
            continue
        (place,) = homes
        if len(worker.places) > 1 and any(len(devices) != size.get(place) for _, devices in worker.places):
            yield broken("pods", worker.name, f"{worker.name} is on several nodes, but not on whole ones")
        running[place, *worker.key] += 1
    wanted: Counter[tuple[str, str, str, int]] = Counter()
    for row in dearest(plan.fleet).replicas:
        wanted[row.offer, row.model, str(row.worker), row.gpus] += row.count
    for key in sorted(set(running) | set(wanted)):
        if running[key] != wanted[key]:
            place, service, name, _ = key
            message = f"{running[key]} of {name} of {service} run on {place}, the fleet has {wanted[key]}"
            yield broken("pods", name, message)


def _experts(problem: DeployProblem, plan: DeployPlan) -> Iterator[Violation]:
    """Maps keep the rules of expert placement."""
    for one in plan.experts:
        worker = problem.workers.get((one.service, one.worker))
        shared = None if worker is None else sharing(worker)
        known = None if shared is None else problem.experts.get((one.service, *shared))
        if known is None:
            yield broken("experts", one.worker, f"{one.worker} of {one.service} has no experts to place")
            continue
        for violation in check_experts(known, one.placement):
            yield broken("experts", one.worker, f"{one.service}: {violation.message}")


def _change(problem: DeployProblem, plan: DeployPlan) -> Iterator[Violation]:
    """Steps lead from what is in force to the plan; each can be done. How much they serve is not computed anew."""
    current, told = problem.current, plan.change
    if current is None or told is None:
        if (current is None) != (told is None):
            yield broken("change", "plan", "steps belong to a deployment in force, and it to steps")
        return
    running = {pod.pod: pod for pod in current.pods}
    after = {pod.pod: pod for pod in plan.pods}
    lent = {pod.pod: pod for pod in told.pods if pod.pod not in running}
    for pod in told.pods:
        if running.get(pod.pod, pod) != pod:
            yield broken("change", pod.pod, f"{pod.pod} is not told as it runs in the deployment in force")
        elif pod.pod in lent and pod.node not in told.lent_nodes:
            yield broken("change", pod.pod, f"{pod.pod} is in neither deployment, and {pod.node} is not lent")
    known = lent | after
    rented = {name for row in current.nodes if row.offer is not None for name in row.names}
    theirs = {name for row in plan.nodes if row.offer is not None for name in row.names}
    stands = {node.name for kind in problem.standing for node in kind.nodes}
    for number, step in enumerate(told.steps):
        rented |= set(step.add_nodes)
        yield from _step(number, step, running, known, rented | stands)
        rented -= set(step.drop_nodes)
    if running != after:
        yield broken("change", "plan", "after the last step other pods run than the plan has")
    if rented != theirs:
        yield broken("change", "plan", "after the last step other nodes are rented than the plan has")
    if min((step.served for step in told.steps), default=told.served_before) < told.served_least - 1e-6:
        yield broken("change", "plan", "a step serves less than is told of the worst")


def _step(
    number: int, step: Step, running: dict[str, DeployedPod], known: dict[str, DeployedPod], there: set[str]
) -> Iterator[Violation]:
    """One step on the pods that run, which it changes."""
    for name in step.start:
        if name in running:
            yield broken("change", name, f"step {number}: {name} starts, but runs already")
        if name not in known:
            yield broken("change", name, f"step {number}: {name} starts, and nothing says where")
            continue
        running[name] = known[name]
        if known[name].node not in there:
            yield broken("change", name, f"step {number}: {name} starts on {known[name].node}, which is not there")
    held = Counter((pod.node, device) for pod in running.values() for device in pod.gpus)
    for (node, device), number_of in held.items():
        if number_of > 1:
            yield broken("change", node, f"step {number}: device {device} of {node} is held {number_of} times")
    for name in step.stop:
        if running.pop(name, None) is None:
            yield broken("change", name, f"step {number}: {name} stops, but does not run")
    for pod in running.values():
        if pod.node in step.drop_nodes:
            yield broken("change", pod.pod, f"step {number}: {pod.node} goes, but {pod.pod} runs there")
