"""A small deployment, written down: `chat` on a node that stands and a rented one, `moe` with a map on a rented one."""

from __future__ import annotations

from typing import Any

from test_serving_launch import worker
from tiny_plan import placement

from planner.deploy_plan import (
    DeployedNodes,
    DeployedPod,
    DeployedShare,
    DeployedWorkers,
    DeployPlan,
    ExpertMap,
    PodTemplate,
    Rate,
)
from planner.fleet_plan import FleetPlan
from planner.parallel_plan import Served, Workers
from planner.plan import DeployDocument, InstanceReference, OutcomeRecord

SIZES = ((1000, 300), (4000, 200))
SMALL, PAIR = worker(tp=1, batch=32), worker(tp=2, batch=64)
MOE = worker(dp=2, ep=2, batch=16)
WIDE = worker(dp=16, ep=16, batch=64)


def kind(service: str, one: Workers, count: int = 1, nodes: int = 1) -> DeployedWorkers:
    known = {name: value for name, value in one.model_dump().items() if name != "count"}
    rates = tuple(Rate(input_tokens=size, output_tokens=out, requests_per_s=2.0) for size, out in SIZES)
    return DeployedWorkers(
        service=service, worker=one.name, count=count, role=one.role, device=one.device, num_gpus=one.num_gpus,
        nodes=nodes, rates=rates, type=known,
    )  # fmt: skip


def pod(name: str, service: str, one: Workers, node: str, gpus: tuple[int, ...], part: int = 0, parts: int = 1) -> Any:
    return DeployedPod(pod=name, service=service, worker=one.name, node=node, gpus=gpus, part=part, parts=parts)


WORKERS = (kind("chat", SMALL, 3), kind("chat", PAIR), kind("moe", MOE))
PODS = (
    pod("chat-1", "chat", SMALL, "host", (4,)),
    pod("chat-2", "chat", SMALL, "host", (5,)),
    pod("chat-3", "chat", SMALL, "big-1", (0,)),
    pod("chat-4", "chat", PAIR, "big-1", (2, 3)),
    pod("moe-1", "moe", MOE, "big-1", (4, 5)),
)


def share(service: str, one: Workers, offer: str, fraction: float) -> DeployedShare:
    return DeployedShare(
        service=service, input_tokens=4000, output_tokens=200, worker=one.name, offer=offer, role=one.role,
        fraction=fraction,
    )  # fmt: skip


def deployed(**said: Any) -> DeployDocument:
    fleet = {"allocation": (), "assignment": (), "cost_usd_per_hour": 10.0, "periods": ()}
    rented = DeployedNodes(offer="big", count=1, device="h100_sxm", gpus=8, usd_per_hour=10, names=("big-1",))
    stands = DeployedNodes(node="h100_sxm-2-free", count=1, device="h100_sxm", gpus=2, usd_per_hour=0, names=("host",))
    map_of = ExpertMap(
        service="moe", worker=MOE.name, placement=placement(), imbalance={"day": 1.0}, eplb_imbalance={"day": 1.1}
    )
    plan = DeployPlan.model_validate(
        {
            "nodes": (rented, stands), "workers": WORKERS, "pods": PODS, "experts": (map_of,), "cost_usd_per_hour": 10,
            "assignment": (share("chat", SMALL, "big", 0.25), share("chat", SMALL, "h100_sxm-2-free", 0.25),
                           share("chat", PAIR, "big", 0.5), share("moe", MOE, "big", 1.0)),
            "hours": (0,), "fleet": FleetPlan.model_validate(fleet),
            "served": {"chat": Served(model="org/chat", backend="vllm"), "moe": Served(model="m", backend="sglang")},
            "template": PodTemplate(
                requests_per_gpu={"cpu": "1500m", "memory": "100Gi", "rdma/hca": 1},
                tolerations=({"key": "team", "operator": "Equal", "value": "llm", "effect": "NoSchedule"},),
                hostnames={"host": "host.internal"},
            ),
        } | said
    )  # fmt: skip
    outcome = OutcomeRecord(
        status="optimal", stop="proof", objective=10, objective_unit="USD/hour", bound=10, gap=0, build_s=0, solve_s=0,
        solver="none", solver_version="0", method="none", seed=0, num_threads=1,
    )  # fmt: skip
    instance = InstanceReference(name="Tiny Deployment", sha256="5ea1" * 16)
    return DeployDocument(problem="deploy", instance=instance, gpuplan_version="0.1.0", outcome=outcome, plan=plan)
