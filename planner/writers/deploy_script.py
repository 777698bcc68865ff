"""`kubectl-sh` for deployments: a shell script that carries a change out in its order, or starts a first deployment.

In each step nodes are there, then sets of workers grow and become ready, then others shrink, then nodes are given back:
no less is served at any time than the plan says. Nothing is changed without APPLY=1.
"""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from planner.deploy_plan import Step
from planner.errors import ExportError
from planner.files import write_text
from planner.kubernetes.names import DEPLOYMENT_LABEL, NODE_LABEL, label_value
from planner.plan import DeployDocument
from planner.writers.common import comments
from planner.writers.deploy_k8s import in_order
from planner.writers.deploy_sets import Manifests, WorkerSet, sets_by_pod
from planner.writers.kube import dumper

#: Resources that hold sets, and what says that all of a set is ready.
DEPLOYMENT, GROUP = "deployment.apps", "leaderworkersets.leaderworkerset.x-k8s.io"
HEAD = r"""set -eu
APPLY=${APPLY:-0}
WAIT=${WAIT:-3600s}
tell() { printf '%s\n' "$*"; }
run() { if [ "$APPLY" = 1 ]; then "$@"; else tell "would run: $*"; fi; }

# apply: the objects on standard input
apply() { if [ "$APPLY" = 1 ]; then kubectl apply -f -; else kubectl apply --dry-run=server -f -; fi; }

# node LABEL WHAT: stop until a node has the label
node() {
  if [ -n "$(kubectl get nodes -l "$1" -o name)" ]; then return 0; fi
  tell "a node is missing, $2. When it has joined: kubectl label node NODE $1"
  if [ "$APPLY" = 1 ]; then return 1; fi
}

# ready RESOURCE NAME
ready() {
  case "$1" in
    deployment.apps) run kubectl rollout status "$1/$2" --timeout="$WAIT" ;;
    *) run kubectl wait "$1/$2" --for=condition=Available --timeout="$WAIT" ;;
  esac
}

# shrink RESOURCE NAME COUNT
shrink() {
  if [ "$3" = 0 ]; then run kubectl delete "$1/$2" --cascade=foreground --timeout="$WAIT"
  else run kubectl scale "$1/$2" --replicas="$3"; fi
}

# leave LABEL: the node takes no workers of the plan any more, and may go
leave() { run kubectl label nodes -l "$1" "${1%%=*}-"; tell "may be given back: the node of $1"; }
"""


def write(document: DeployDocument, path: str) -> None:
    """The script; ExportError where nothing changes, and for what an engine or Kubernetes cannot express."""
    plan = document.plan
    assert plan is not None
    change = plan.change
    if change is not None and not change.steps:
        raise ExportError("the plan changes nothing: there is nothing to carry out")
    made = Manifests(document)
    name = "plan.sh" if path == "-" else shlex.quote(path.rpartition("/")[2])
    told = [
        f"sh {name}: what would happen, every object judged by the server; APPLY=1 sh {name}: do it",
        "workers that stay are not applied again: `kubectl diff -f` of the plan's k8s manifests tells if they differ",
        *made.told(),
    ]
    text = "#!/bin/sh\n" + comments(document, "kubectl-sh", path, *told) + HEAD
    text += "\ntell 'services'\n" + _applied(made.shared())
    text += "".join(_steps(made))
    chosen = f"{DEPLOYMENT_LABEL}={label_value(document.instance.name)}"
    write_text(path, f"{text}\nkubectl get pods -l {shlex.quote(chosen)} -o wide\n")


def _steps(made: Manifests) -> Iterator[str]:
    """The lines of each step, while sets are counted."""
    plan, change = made.plan, made.plan.change
    sets = sets_by_pod(plan.pods) | sets_by_pod(() if change is None else change.pods)
    if change is None:
        rented = [name for row in plan.nodes if row.offer is not None for name in row.names]
        steps: tuple[Step, ...] = (Step(add_nodes=tuple(rented), start=tuple(sets), served=1.0),)
    else:
        steps = change.steps
    pods = {pod.pod for pod in (*plan.pods, *(() if change is None else change.pods))}
    if missing := {pod for step in steps for pod in (*step.start, *step.stop)} - pods:
        raise ExportError(f"the plan does not say where {min(missing)} runs; plan again with this version")
    started = {pod for step in steps for pod in step.start}
    running = Counter(one for pod, one in sets.items() if pod not in started)
    for number, step in enumerate(steps, start=1):
        grown = Counter(sets[pod] for pod in step.start if pod in sets)
        shrunk = Counter(sets[pod] for pod in step.stop if pod in sets)
        lines = [f"\ntell 'step {number} of {len(steps)}: {step.served:.1%} of the demand is served after it'\n"]
        there = dict.fromkeys((*step.add_nodes, *(node for one in grown for node in one.nodes)))
        for node, what in made.nodes_to_label(there).items():
            lines.append(f"node {_label(node)} {shlex.quote(what)}\n")
        running.update(grown)
        order = in_order(grown, made)
        lines.append(_applied(made.workers(one, running[one]) for one in order))
        lines += [f"ready {_resource(one)} {one.name}\n" for one in order]
        running.subtract(shrunk)
        lines += [f"shrink {_resource(one)} {one.name} {running[one]}\n" for one in sorted(shrunk)]
        lines += [f"leave {_label(node)}\n" for node in step.drop_nodes]
        yield "".join(lines)


def _applied(objects: Iterable[Mapping[str, Any]]) -> str:
    """Objects on the standard input of `apply`; nothing where there are none."""
    text = io.StringIO()
    dumper().dump_all(list(objects), text)
    return f"apply <<'END_OF_OBJECTS'\n{text.getvalue()}END_OF_OBJECTS\n" if text.getvalue() else ""


def _label(node: str) -> str:
    return shlex.quote(f"{NODE_LABEL}={label_value(node)}")


def _resource(one: WorkerSet) -> str:
    return DEPLOYMENT if len(one.nodes) == 1 else GROUP
