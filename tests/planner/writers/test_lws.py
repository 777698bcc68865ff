"""Manifests of LeaderWorkerSet and DisaggregatedSet: valid by their schemas, and their pods run what engines accept."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from test_serving_launch import TABLES, document, worker
from tiny_plan import parsed_by_table

from planner.errors import ExportError
from planner.parallel_plan import Workers
from planner.writers import export

SCHEMAS = {
    "LeaderWorkerSet": "crds/leaderworkerset-leaderworkerset-v1.json",
    "DisaggregatedSet": "crds/disaggregatedset-disaggregatedset-v1.json",
}
PREFILL, DECODE = worker("prefill", tp=2, batch=4, count=3), worker("decode", dp=16, ep=16, batch=64)
#: Flags of vLLM's front end, which the table of its engine has not. Source: vLLM's command-line reference.
FRONT_END = {"--host": True, "--port": True, "--headless": False}


def exported(folder: Path, to: str, *workers: Workers, **said: Any) -> list[dict[str, Any]]:
    export(document(*workers, **{"backend": "vllm", **said}), to, str(folder / "plan.yaml"))
    return list(YAML(typ="safe").load_all((folder / "plan.yaml").read_text()))


def validated(manifests: list[dict[str, Any]], data: Path) -> list[str]:
    """Kinds, after each was held against the schema of its kind."""
    for one in manifests:
        schema = json.loads((data / SCHEMAS[one["kind"]]).read_text())
        jsonschema.Draft202012Validator(schema).validate(one)
    return [one["kind"] for one in manifests]


def pods(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("leaderTemplate", "workerTemplate"):
        if name in spec["leaderWorkerTemplate"]:
            yield name, spec["leaderWorkerTemplate"][name]["spec"]["containers"][0]


def argv(container: dict[str, Any], folder: Path, rank: int = 0) -> list[str]:
    """What a pod's container starts, by programs that only tell their arguments."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for program in ("vllm", "python", "trtllm-serve"):
        (programs / program).write_text(f"#!/bin/bash\nprintf '%s\\0' {program} \"$@\"\n")
        (programs / program).chmod(0o755)
    run = subprocess.run(
        [*container["command"], *container["args"]],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin", "LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": "leader.svc"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\0")[:-1]


def known_flags(started: list[str], to: str, table: Path) -> dict[str, str | None]:
    rest = started[{"vllm": 3, "sglang": 3, "trtllm": 2}[to] :]
    ours: dict[str, str | None] = {}
    engine: list[str] = []
    while rest:
        word = rest.pop(0)
        if to == "vllm" and word in FRONT_END:
            ours[word] = rest.pop(0) if FRONT_END[word] else None
        else:
            engine.append(word)
    return ours | parsed_by_table(engine, table)


@pytest.mark.parametrize("to", ["vllm", "sglang"])
def test_a_worker_of_two_nodes(tmp_path: Path, shared_data: Path, to: str) -> None:
    """16 GPUs on nodes of 8: groups of two pods, the second of which follows the first."""
    one = worker(dp=16, ep=16, batch=64, count=2)
    manifests = exported(tmp_path, "lws", one, backend=to)
    assert validated(manifests, shared_data) == ["LeaderWorkerSet"]
    spec = manifests[0]["spec"]
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (2, 2)
    leader, follower = (container for _, container in pods(spec))
    assert leader["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    table = shared_data / TABLES[to]
    first, second = known_flags(argv(leader, tmp_path), to, table), known_flags(argv(follower, tmp_path, 1), to, table)
    assert (first["--host"], first["--port"]) == ("0.0.0.0", "8000")
    if to == "vllm":
        assert "--headless" in second.keys() - first.keys()
        assert (first["--data-parallel-start-rank"], second["--data-parallel-start-rank"]) == ("0", "8")
        assert second["--data-parallel-address"] == "leader.svc"
    else:
        assert (first["--node-rank"], second["--node-rank"]) == ("0", "1")
        assert second["--dist-init-addr"] == "leader.svc:5000"
    assert "readinessProbe" in leader
    assert "readinessProbe" not in follower


@pytest.mark.parametrize("to", sorted(TABLES))
def test_workers_of_a_node(tmp_path: Path, shared_data: Path, to: str) -> None:
    one = worker(tp=2, batch=64, count=3)
    (manifest,) = exported(tmp_path, "lws", one, backend=to)
    assert validated([manifest], shared_data)
    ((template, container),) = pods(manifest["spec"])
    assert template == "workerTemplate"
    found = known_flags(argv(container, tmp_path), to, shared_data / TABLES[to])
    assert found["--port"] == "8000"
    selector = manifest["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["nodeSelector"]
    assert selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


def test_prefill_and_decode_are_roles_of_one_set(tmp_path: Path, shared_data: Path) -> None:
    manifests = exported(tmp_path, "disaggregatedset", PREFILL, DECODE, worker(tp=8, batch=16))
    assert validated(manifests, shared_data) == ["DisaggregatedSet", "LeaderWorkerSet"]
    roles = manifests[0]["spec"]["roles"]
    assert [role["spec"]["replicas"] for role in roles] == [3, 1]
    assert [role["spec"]["leaderWorkerTemplate"]["size"] for role in roles] == [1, 2]
    for role in roles:
        for _, container in pods(role["spec"]):
            assert "--kv-transfer-config" in known_flags(
                argv(container, tmp_path), "vllm", shared_data / TABLES["vllm"]
            )
            assert container["env"][0]["name"] == "VLLM_NIXL_SIDE_CHANNEL_HOST"
    head = (tmp_path / "plan.yaml").read_text().split("\napiVersion")[0]
    assert "vllm bench serve" in head
    assert "to the mixed workers" in head


def test_a_misspelt_key_is_found(tmp_path: Path, shared_data: Path) -> None:
    """The schemas refuse what they do not know, so that the tests above can fail."""
    (manifest,) = exported(tmp_path, "lws", worker(tp=2))
    manifest["spec"]["leaderWorkerTemplate"]["sizes"] = 2
    with pytest.raises(jsonschema.ValidationError, match="sizes"):
        validated([manifest], shared_data)


def test_names_are_those_of_kubernetes_and_stay_apart(tmp_path: Path, shared_data: Path) -> None:
    long = "prefill-h100_sxm-" + "very-long-" * 6
    manifests = exported(tmp_path, "lws", worker(name=long + "one"), worker(name=long + "two"), worker(name="8 Öfen!"))
    assert validated(manifests, shared_data)
    names = [one["metadata"]["name"] for one in manifests]
    assert len(set(names)) == 3
    for name in names:
        assert len(name) <= 50
        assert name[0].isalpha()
        assert name[-1] != "-"
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    ("to", "workers", "said", "expected"),
    [
        ("lws", (worker(tp=2),), {"backend": None}, "names no engine"),
        ("disaggregatedset", (worker(tp=2),), {}, "only mixed ones"),
        ("lws", (worker(dp=16, ep=16),), {"backend": "trtllm"}, "with srun or mpirun"),
        ("lws", (worker("prefill", tp=4, cp=2), DECODE), {"backend": "trtllm"}, "no context parallelism for prompts"),
        (
            "lws",
            (worker(tp=2).model_copy(update={"device": "my_own"}),),
            {},
            "no Kubernetes resource is known of my_own",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    tmp_path: Path, to: str, workers: tuple[Workers, ...], said: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ExportError, match=expected):
        exported(tmp_path, to, *workers, **said)
    assert not list(tmp_path.iterdir())
