"""`gpuplan import kubectl`, `openb` and `topo`: what a cluster is, from what its own tools print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.command import ExitCode
from cli.options import JsonOption
from cli.pods import GoalName

NameOption = Annotated[str | None, typer.Option("--name", metavar="TEXT", help="default: that of the first file")]
ObjectiveOption = Annotated[GoalName | None, typer.Option("--objective", help="of the instance; default: priority")]
NetworkOption = Annotated[
    str | None, typer.Option("--network", metavar="LINK", help="what joins the nodes, as ib_ndr; default: assumed")
]
InstanceOutput = Annotated[
    str, typer.Option("--output", "-o", metavar="FILE.yaml", help="a name ending in .json is JSON; - is stdout")
]


def kubectl(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="`kubectl get nodes -o json`, then `kubectl get pods -A -o json`, then more objects; one file may "
            "hold all; folders and YAML too; - is standard input",
        ),
    ],
    cluster: Annotated[
        bool, typer.Option("--cluster", help="write a cluster for `parallel` and `estimate` instead of an instance")
    ] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=NAME", help="with --cluster: the device behind a product label; repeatable"),
    ] = None,
    network: NetworkOption = None,
    name: NameOption = None,
    objective: ObjectiveOption = None,
    output: InstanceOutput = "-",
    as_json: JsonOption = False,
) -> int:
    """What kubectl prints -> an instance of pods, or with --cluster the cluster that its nodes are.

    The files are read whole first, and every mistake is told. The instance names the files; the cluster counts the
    GPUs of all nodes that take pods, by product label and instance type.
    """
    from cli.importing import write
    from cli.importing_nodes import import_kubectl_cluster, import_kubectl_pods
    from planner.errors import OptionError

    if not cluster and (device or network):
        raise OptionError("--device and --network are for --cluster")
    if cluster and objective:
        raise OptionError("--objective is for an instance of pods, not for --cluster")
    called = name or _stem(files[0])
    found = (
        import_kubectl_cluster(files, called, device or [], network)
        if cluster
        else import_kubectl_pods(files, called, None if objective is None else objective.value, output)
    )
    write(found, output, as_json)
    return ExitCode.OK


def openb(
    nodes: Annotated[str, typer.Argument(metavar="NODES.csv", help="columns sn, cpu_milli, memory_mib, gpu, model")],
    pods: Annotated[
        str,
        typer.Argument(
            metavar="PODS.csv",
            help="columns name, cpu_milli, memory_mib, num_gpu, gpu_milli, and where known gpu_spec, qos",
        ),
    ],
    name: NameOption = None,
    objective: ObjectiveOption = None,
    output: InstanceOutput = "-",
    as_json: JsonOption = False,
) -> int:
    """Alibaba's openb tables (GPU trace v2023) -> an instance of pods that names them, all pods pending."""
    from cli.importing import write
    from cli.importing_nodes import import_openb

    goal = None if objective is None else objective.value
    write(import_openb(nodes, pods, name or _stem(pods), goal, output), output, as_json)
    return ExitCode.OK


def topo(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `nvidia-smi topo -m` prints; - is standard input")],
    device: Annotated[
        str, typer.Option(metavar="NAME", help="GPU of the node, which the matrix does not say: as h100_sxm")
    ],
    count: Annotated[int, typer.Option(metavar="N", help="nodes like this one")] = 1,
    network: NetworkOption = None,
    name: NameOption = None,
    output: InstanceOutput = "-",
    as_json: JsonOption = False,
) -> int:
    """The links of one node -> a cluster of such nodes: which GPUs NVLink joins, with how many links, and its NICs."""
    from cli.importing import write
    from cli.importing_nodes import import_topo

    write(import_topo(file, device, count, name or _stem(file), network), output, as_json)
    return ExitCode.OK


def _stem(path: str) -> str:
    return "imported" if path == "-" else Path(path).stem[:200] or "imported"
