"""The script of a deployment's steps, run against a kubectl that only notes what it is told."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import PAIR, PODS, WORKERS, deployed, kind, pod
from ruamel.yaml import YAML

from formulations import SolveOptions, load_problem, plan
from planner.deploy_plan import Change, Step
from planner.descriptions.deploy import DeployInstance
from planner.errors import ExportError
from planner.files import to_json
from planner.parallel_plan import Served, WorkerType
from planner.plan import DeployDocument
from planner.writers import export
from planner.writers.deploy_sets import sets_by_pod

#: Notes its arguments, and in a file of its own what it is given; knows no node with a label, unless told.
KUBECTL = r"""#!/bin/sh
n=$(ls "$LOG" | wc -l)
name=$(printf '%s/%03d' "$LOG" "$n")
printf '%s\n' "$*" > "$name.args"
case "$*" in
  *"-f -"*) cat > "$name.yaml" ;;
  "get nodes -l "*) if [ -n "$JOINED" ]; then echo node/found; fi ;;
esac
"""
#: One chat worker more on the host; a pair makes room for it, and one lent node bridges the time.
BEFORE = (pod("chat-8", "chat", PAIR, "host", (4, 5)), *PODS[2:])
CHANGE = Change(
    kept=3, started=2, stopped=1, lent_nodes=("big-lent-1",), served_before=1.0, served_least=1.0,
    steps=(
        Step(add_nodes=("big-lent-1",), start=("chat-8-lent",), served=1.0),
        Step(stop=("chat-8",), served=1.0),
        Step(start=("chat-1", "chat-2"), stop=("chat-8-lent",), served=1.0),
        Step(drop_nodes=("big-lent-1",), served=1.0),
    ),
    pods=(BEFORE[0], pod("chat-8-lent", "chat", PAIR, "big-lent-1", (0, 1))),
    lent=(kind("chat", PAIR),),
)  # fmt: skip


def run(folder: Path, document: DeployDocument, **environment: str) -> tuple[str, list[tuple[str, str]]]:
    """Exit code and output; each call of kubectl with what it was given."""
    export(document, "kubectl-sh", str(folder / "plan.sh"))
    programs, log = folder / "bin", folder / "log"
    programs.mkdir()
    log.mkdir()
    (programs / "kubectl").write_text(KUBECTL)
    (programs / "kubectl").chmod(0o755)
    known = {"PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(log), "JOINED": "1", **environment}
    done = subprocess.run(["sh", str(folder / "plan.sh")], env=known, capture_output=True, text=True)
    calls = []
    for path in sorted(log.glob("*.args")):
        given = path.with_suffix(".yaml")
        calls.append((path.read_text().strip(), given.read_text() if given.exists() else ""))
    return f"{done.returncode}\n{done.stdout}{done.stderr}", calls


def replayed(calls: list[tuple[str, str]], before: Counter[str]) -> list[Counter[str]]:
    """Workers of each set after each call that changes some."""
    now, seen = Counter(before), [Counter(before)]
    for said, given in calls:
        words = said.split()
        if words[0] == "apply":
            for one in YAML(typ="safe").load_all(given):
                if one["kind"] in ("Deployment", "LeaderWorkerSet"):
                    now[one["metadata"]["name"]] = one["spec"]["replicas"]
        elif words[0] == "scale":
            now[words[1].partition("/")[2]] = int(words[2].removeprefix("--replicas="))
        elif words[0] == "delete":
            del now[words[1].partition("/")[2]]
        seen.append(+now)
    return seen


def names(pods: tuple[object, ...]) -> Counter[str]:
    return Counter(one.name for one in sets_by_pod(pods).values())  # type: ignore[arg-type]


def test_a_first_deployment_starts_everything(tmp_path: Path) -> None:
    said, calls = run(tmp_path, deployed(), APPLY="1")
    assert said.startswith("0\n"), said
    assert replayed(calls, Counter())[-1] == names(PODS)
    waited = [one for one, _ in calls if one.startswith("rollout status")]
    assert len(waited) == 4
    assert calls[-1][0].startswith("get pods -l gpuplan/deployment=")


def test_steps_end_at_the_plan_and_never_hold_too_little(tmp_path: Path) -> None:
    """There is always one pair beside the first one, or the two small workers on the host."""
    said, calls = run(tmp_path, deployed(change=CHANGE), APPLY="1")
    assert said.startswith("0\n"), said
    states = replayed(calls, names(BEFORE))
    assert states[-1] == names(PODS)
    sets = {one.name: one for pods in (PODS, BEFORE, CHANGE.pods) for one in sets_by_pod(pods).values()}
    for state in states:
        on_host = sum(count for name, count in state.items() if sets[name].nodes == ("host",))
        lent = sum(count for name, count in state.items() if sets[name].nodes == ("big-lent-1",))
        assert on_host + lent >= 1
    kinds = [one.split()[0] for one, _ in calls]
    # Grown sets are ready before others shrink.
    assert kinds.index("rollout") < kinds.index("delete")
    assert calls[-2][0] == "label nodes -l gpuplan/node=big-lent-1 gpuplan/node-"
    assert "may be given back: the node of gpuplan/node=big-lent-1" in said


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    said, calls = run(tmp_path, deployed(change=CHANGE), JOINED="")
    assert said.startswith("0\n"), said
    for one, _ in calls:
        assert one.startswith("get ") or "--dry-run=server" in one
    assert "a node is missing, for the time of the change: 2 x h100_sxm" in said
    assert "would run: kubectl delete deployment.apps/chat-host" in said


def test_a_missing_node_stops_it(tmp_path: Path) -> None:
    said, calls = run(tmp_path, deployed(), APPLY="1", JOINED="")
    assert said.startswith("1\n")
    assert "kubectl label node NODE gpuplan/node=big-1" in said
    assert not any("kind: Deployment" in given for _, given in calls)


def test_a_set_that_shrinks_is_scaled(tmp_path: Path) -> None:
    """Of two equal workers on a node one stops."""
    pods = PODS[1:]
    steps = (Step(stop=("chat-1",), served=1.0),)
    change = Change(kept=4, started=0, stopped=1, steps=steps, served_before=1, served_least=1, pods=PODS[:1])
    workers = (WORKERS[0].model_copy(update={"count": 2}), *WORKERS[1:])
    said, calls = run(tmp_path, deployed(pods=pods, workers=workers, change=change), APPLY="1")
    assert said.startswith("0\n"), said
    assert replayed(calls, names(PODS))[-1] == names(pods)
    assert any(one.startswith("scale deployment.apps/chat-host") for one, _ in calls)


def solved(folder: Path, name: str, rates: dict[str, float], **more: Any) -> DeployDocument:
    """A plan of small and large workers on two own nodes and what is rented; what they run is told afterwards."""
    (folder / "workers.csv").write_text(
        "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\n"
        + "".join(f"{w},{s},l4,both,{g},100,100,{r}\n" for s in rates for w, g, r in (("s", 1, 5), ("d", 2, 12)))
    )
    demand = {"input_tokens": 100, "output_tokens": 100}
    instance = {
        "name": "case", "workers": "workers.csv", "utilisation": 1.0,
        "services": [{"name": name, "demand": [{**demand, "rate_per_s": rate}]} for name, rate in rates.items()],
        "nodes": [{"name": "own", "device": "l4", "gpus": 2, "count": 2}],
        "offers": [{"name": "pair", "device": "l4", "gpus": 2, "price_usd_per_hour": 3}],
    }  # fmt: skip
    document = plan(load_problem(DeployInstance.model_validate(instance | more), folder), options=SolveOptions())
    assert isinstance(document, DeployDocument)
    assert document.plan is not None
    typed = []
    for row in document.plan.workers:
        of = {"tensor_parallel_size": row.num_gpus, "requests_per_s": 1.0}
        kept = {name: getattr(row, name) for name in ("role", "device", "num_gpus")}
        typed.append(row.model_copy(update={"type": WorkerType(name=row.worker, **kept, **of)}))
    change = document.plan.change
    if change is not None:
        kinds = {(row.service, row.worker): row for row in typed}
        lent = tuple(kinds.get((row.service, row.worker), row) for row in change.lent)
        assert all(row.type is not None for row in lent), "a lent worker of a kind that the plan does not have"
        change = change.model_copy(update={"lent": lent})
    served = {name: Served(model=name, backend="vllm") for name in rates}
    update = {"workers": tuple(typed), "served": served, "change": change}
    document = document.model_copy(update={"plan": document.plan.model_copy(update=update)})
    (folder / f"{name}.json").write_text(to_json(document))
    return document


@pytest.mark.parametrize("seed", range(6))
def test_every_change_ends_at_what_the_manifests_start(tmp_path: Path, seed: int) -> None:
    """From one random demand to another: the sets that run after the script are those of the new plan's manifests."""
    rng = np.random.default_rng(seed)
    demands = [{name: float(rng.integers(2, 20)) for name in ("a", "b")} for _ in range(2)]
    first = solved(tmp_path, "now", demands[0])
    second = solved(tmp_path, "next", demands[1], current="now.json")
    assert first.plan is not None
    assert second.plan is not None
    assert second.plan.change is not None
    if not second.plan.change.steps:
        assert names(first.plan.pods) == names(second.plan.pods)
        return
    said, calls = run(tmp_path, second, APPLY="1")
    assert said.startswith("0\n"), said
    export(second, "k8s", str(tmp_path / "all.yaml"))
    after = replayed([("apply", (tmp_path / "all.yaml").read_text())], Counter())[-1]
    assert replayed(calls, names(first.plan.pods))[-1] == after


def test_steps_whose_pods_are_not_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not say where chat-8 runs; plan again"):
        export(deployed(change=CHANGE.model_copy(update={"pods": CHANGE.pods[1:]})), "kubectl-sh", str(tmp_path / "x"))


def test_no_change_is_refused(tmp_path: Path) -> None:
    change = Change(kept=5, started=0, stopped=0, steps=(), served_before=1.0, served_least=1.0)
    with pytest.raises(ExportError, match="changes nothing"):
        export(deployed(change=change), "kubectl-sh", str(tmp_path / "plan.sh"))


def test_hostile_names_stay_words(tmp_path: Path) -> None:
    """A node named like a command is a word of the script."""
    evil = "x'; touch pwned; '"
    pods = tuple(one.model_copy(update={"node": evil}) if one.node == "big-1" else one for one in PODS)
    plan = deployed().plan
    assert plan is not None
    nodes = tuple(one.model_copy(update={"names": (evil,)}) if one.offer else one for one in plan.nodes)
    said, calls = run(tmp_path, deployed(pods=pods, nodes=nodes), APPLY="1")
    assert said.startswith("0\n"), said
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()
    assert len(replayed(calls, Counter())[-1]) == 4
