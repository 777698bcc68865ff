"""Plan documents -> the files of serving engines and tools, one format a module, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import ExportError, OptionError
from planner.plan import PlanDocument

__all__ = ["WRITERS", "Writer", "export"]


@dataclass(frozen=True, slots=True)
class Writer:
    """One export format of one kind's plans: what it is, and what writes the file."""

    summary: str
    write: Callable[[Any, str], None]


def _module(name: str, function: str = "write") -> Callable[[Any, str], None]:
    """A function of planner.writers.<name>, imported when it is called."""

    def write(document: PlanDocument, path: str) -> None:
        getattr(importlib.import_module(f"planner.writers.{name}"), function)(document, path)

    return write


#: Writers by format, and in it by the kind whose plans they hold.
WRITERS: Mapping[str, Mapping[str, Writer]] = {
    "deepspeed": {"training": Writer("DeepSpeed JSON", _module("deepspeed"))},
    "disaggregatedset": {
        "parallel": Writer(
            "Kubernetes DisaggregatedSet of prefill and decode workers", _module("lws", "write_disaggregated")
        )
    },
    "diff": {"pods": Writer("what changes, one line a pod", _module("pod_moves", "write_diff"))},
    "dynamo": {"parallel": Writer("NVIDIA Dynamo DynamoGraphDeployment, v1alpha1 (1.3)", _module("dynamo"))},
    "exflow-csv": {"experts": Writer("ExFlow solution CSV (Expert,Node)", _module("exflow"))},
    "kubectl-sh": {
        "deploy": Writer(
            "shell script that starts a deployment, or changes it step by step; dry run by default",
            _module("deploy_script"),
        ),
        "pods": Writer(
            "shell script of evictions, moves and bindings in order; dry run by default",
            _module("pod_moves", "write_script"),
        ),
    },
    "lws": {"parallel": Writer("Kubernetes LeaderWorkerSet, one a kind of worker", _module("lws"))},
    "k8s": {
        "deploy": Writer(
            "everything in order: Services, Deployments and LeaderWorkerSets on their nodes", _module("deploy_k8s")
        ),
        "parallel": Writer("Kubernetes Deployments and Services, on nodes with that GPU", _module("deployment")),
        "pods": Writer("Binding objects for pending pods, a JSON list for kubectl create", _module("bindings")),
    },
    "kueue": {
        "deploy": Writer("the same, a ClusterQueue for each service", _module("kueue", "write_deployment")),
        "fleet": Writer("Kueue ResourceFlavors, Topology and ClusterQueues", _module("kueue")),
    },
    "megatron": {"training": Writer("Megatron-LM arguments, a shell array", _module("megatron"))},
    "moves": {"experts": Writer("ordered expert moves from the current placement, CSV or JSON", _module("moves"))},
    "sglang": {
        "experts": Writer("SGLang --init-expert-location JSON and its launch flags", _module("sglang")),
        "parallel": Writer("sglang.launch_server commands, a shell script", _module("sglang_serve")),
    },
    "torchtitan": {"training": Writer("torchtitan overrides, a shell array", _module("torchtitan"))},
    "trtllm": {
        "experts": Writer("TensorRT-LLM moe_load_balancer.yaml", _module("trtllm")),
        "parallel": Writer("trtllm-serve commands and their YAML, a shell script", _module("trtllm_serve")),
    },
    "vllm": {
        "experts": Writer("none: vLLM 0.33 reads no expert map; says what is possible", _module("vllm")),
        "parallel": Writer("vllm serve commands, a shell script", _module("vllm_serve")),
    },
    "vllm-config": {"parallel": Writer("YAML for vllm serve --config, one a kind of worker", _module("vllm_config"))},
    "vllm-ascend": {"experts": Writer("vLLM Ascend expert map JSON and its launch flags", _module("vllm_ascend"))},
}


def export(document: PlanDocument, to: str, path: str) -> None:
    """Write the plan as format `to` to `path` ('-' is standard output), whole or not at all.

    Raises OptionError (unknown format, unusable path) and ExportError (no plan that fits the format).
    """
    by_problem = WRITERS.get(to)
    if by_problem is None:
        raise OptionError(f"unknown export format {to!r}; known: {', '.join(sorted(WRITERS))}")
    writer = by_problem.get(document.kind_name)
    if writer is None:
        raise ExportError(f"{to} holds plans of {' or '.join(by_problem)}, this is a plan of {document.kind_name}")
    if document.plan is None:
        raise ExportError(f"the document holds no plan (status {document.outcome.status})")
    writer.write(document, path)
