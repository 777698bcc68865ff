"""`kubectl-sh`: a shell script that carries a pods plan out in its order, and changes nothing unless it is told to.
`diff`: what changes, one line a pod.

Running pods cannot be moved: each is evicted through the Eviction subresource, which honours disruption budgets, and
its controller makes another one. So that the scheduler does not place that one elsewhere, every node is cordoned while
the script runs; the script binds the new pod to the node of the plan (a Binding passes the scheduler by) and waits
until it is ready, so that old places are free before others need them. Sources: k8s.io/api policy/v1 Eviction, core/v1
Binding.
"""

from __future__ import annotations

import shlex
from collections import Counter

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import PodsDocument
from planner.pods_plan import PodsPlan

HEAD = r"""#!/bin/sh
# Made by gpuplan {version}. Without APPLY=1 nothing is changed: evictions are dry runs on the server, the rest is told.
#   sh {name}            what would happen
#   APPLY=1 sh {name}    do it
# Moves stop a pod before it starts again; the order makes sure that its place is free by then.
set -eu
APPLY=${{APPLY:-0}}
TRIES=${{TRIES:-60}}
WAIT_S=${{WAIT_S:-5}}
tell() {{ printf '%s\n' "$*"; }}
run() {{ if [ "$APPLY" = 1 ]; then "$@"; else tell "would run: $*"; fi; }}

owner() {{ kubectl get pod -n "$1" "$2" -o 'jsonpath={{.metadata.ownerReferences[?(@.controller==true)].uid}}'; }}

# evict NAMESPACE POD: refused while a disruption budget is used up, then tried again.
evict() {{
  dry='[]'; [ "$APPLY" = 1 ] || dry='["All"]'
  body='{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"namespace":"'$1'","name":"'$2'"}},'
  body=$body'"deleteOptions":{{"dryRun":'$dry'}}}}'
  n=0
  until printf '%s' "$body" | kubectl create --raw "/api/v1/namespaces/$1/pods/$2/eviction" -f - >/dev/null; do
    n=$((n + 1)); [ "$APPLY" = 1 ] && [ "$n" -lt "$TRIES" ] || {{ tell "$1/$2 could not be evicted" >&2; return 1; }}
    sleep "$WAIT_S"
  done
  tell "evicted $1/$2"
}}

# bind NAMESPACE POD NODE
bind() {{
  body='{{"apiVersion":"v1","kind":"Binding","metadata":{{"namespace":"'$1'","name":"'$2'"}},'
  body=$body'"target":{{"apiVersion":"v1","kind":"Node","name":"'$3'"}}}}'
  if [ "$APPLY" = 1 ]; then printf '%s' "$body" | kubectl create -f - ; else tell "would bind $1/$2 to $3"; fi
}}

# successor NAMESPACE OWNER: a pod of the same controller that has no node yet.
successor() {{
  form='{{range .items[*]}}{{.metadata.ownerReferences[?(@.controller==true)].uid}}{{" "}}{{.metadata.name}}'
  form=$form'{{" "}}{{.spec.nodeName}}{{"\n"}}{{end}}'
  kubectl get pods -n "$1" -o "jsonpath=$form" | awk -v uid="$2" '$1 == uid && NF == 2 {{ print $2; exit }}'
}}

# leave NAMESPACE POD: evict it and remember its controller.
leave() {{
  uid=$(owner "$1" "$2")
  if [ -z "$uid" ]; then tell "$1/$2 has no controller that would make it again: left alone" >&2; return 1; fi
  evict "$1" "$2"
}}

# arrive NAMESPACE POD OWNER NODE; the new pod's name is in `made`.
arrive() {{
  if [ "$APPLY" != 1 ]; then tell "would bind the successor of $1/$2 to $4"; made=$2; return 0; fi
  n=0
  while new=$(successor "$1" "$3"); [ -z "$new" ]; do
    n=$((n + 1)); [ "$n" -lt "$TRIES" ] || {{ tell "$1/$2 has no successor" >&2; return 1; }}
    sleep "$WAIT_S"
  done
  bind "$1" "$new" "$4"
  made=$new
  kubectl wait -n "$1" --for=condition=Ready "pod/$new" --timeout="$((TRIES * WAIT_S))s"
}}

form='{{range .items[?(@.spec.unschedulable!=true)]}}{{.metadata.name}}{{"\n"}}{{end}}'
NODES=$(kubectl get nodes -o "jsonpath=$form")
reopen() {{ for node in $NODES; do run kubectl uncordon "$node"; done; }}
trap reopen EXIT
for node in $NODES; do run kubectl cordon "$node"; done
"""


def write_script(document: PodsDocument, path: str) -> None:
    """Evictions, moves by step, then bindings of pending pods; ExportError where nothing is to be done."""
    assert document.plan is not None
    plan = document.plan
    fresh = _fresh(plan)
    if not (plan.moves or plan.evictions or fresh):
        raise ExportError("the plan changes nothing: there is nothing to carry out")
    name = "plan.sh" if path == "-" else shlex.quote(path.rpartition("/")[2])
    lines = [HEAD.format(version=document.gpuplan_version, name=name)]
    for pod in plan.evictions:
        lines.append(f"evict {_two(pod)}")
    lines += _moves(plan)
    if fresh:
        lines.append("\ntell 'pending pods'")
    lines += [f"bind {_two(pod)} {shlex.quote(node)}" for pod, node in fresh]
    write_text(path, "\n".join(lines) + "\n")


def write_diff(document: PodsDocument, path: str) -> None:
    """`-` evicted, `~` moved, `+` placed; ExportError where nothing changes."""
    assert document.plan is not None
    plan = document.plan
    lines = [f"- {pod}" for pod in plan.evictions]
    lines += [
        f"~ {move.pod}  {move.from_node} -> {move.to_node}  step {move.step}"
        + ("" if move.way == "direct" else f", {move.way}" + (f", back in step {move.arrives}" if move.arrives else ""))
        for move in plan.moves
    ]
    lines += [f"+ {pod}  {node}" for pod, node in _fresh(plan)]
    if not lines:
        raise ExportError("the plan changes nothing")
    write_text(path, "\n".join(lines) + "\n")


def _fresh(plan: PodsPlan) -> list[tuple[str, str]]:
    """Pending pods and their nodes."""
    moved = {move.pod for move in plan.moves}
    return [(one.pod, one.node) for one in plan.placements if not one.running and one.pod not in moved]


def _moves(plan: PodsPlan) -> list[str]:
    """Lines for the moves: one after the other within a step; a pod that moves again goes by the name it has then."""
    events = sorted(
        [(move.step, 0 if move.arrives is not None else 1, index, True) for index, move in enumerate(plan.moves)]
        + [(move.arrives or move.step, 1, index, False) for index, move in enumerate(plan.moves)],
        key=lambda event: (event[0], event[1], event[2], not event[3]),
    )
    lines, told = [], 0
    renamed: dict[str, str] = {}
    moves_left = Counter(move.pod for move in plan.moves)
    for step, _, index, leaves in events:
        move = plan.moves[index]
        if step != told:
            lines.append(f"\ntell 'step {step}'")
            told = step
        pod = renamed.get(move.pod, _two(move.pod))
        if leaves:
            lines += [f"uid_{index}=$(owner {pod})", f"leave {pod}"]
            continue
        note = "" if move.way == "direct" else f"  # {move.way}"
        lines.append(f'arrive {pod} "$uid_{index}" {shlex.quote(move.to_node)}{note}')
        moves_left[move.pod] -= 1
        if moves_left[move.pod]:
            lines.append(f"pod_{index}=$made")
            renamed[move.pod] = f'{shlex.quote(move.pod.partition("/")[0])} "$pod_{index}"'
    return lines


def _two(pod: str) -> str:
    namespace, _, name = pod.partition("/")
    return f"{shlex.quote(namespace)} {shlex.quote(name)}"
