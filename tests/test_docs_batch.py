"""The examples of docs/batch.md: the manifest against Kubernetes' own schema, the scripts as the shell reads them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from planner.descriptions.batch import JobList
from planner.files import parse_source, validate

DOC = (Path(__file__).resolve().parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)


def test_lists_are_what_is_read() -> None:
    lists = [text for text in blocks("yaml") if text.startswith("jobs:")]
    assert len(lists) == 2
    for text in lists:
        validate(parse_source(text, "docs/batch.md", Path.cwd()), JobList)


def test_indexed_job_keeps_to_the_schema_of_jobs(shared_data: Path) -> None:
    """JobSet's schema holds that of a Job's spec; the manifest has all of its keys from there, and none beside."""
    manifest = next(YAML(typ="safe", pure=True).load(text) for text in blocks("yaml") if text.startswith("apiVersion"))
    schema = json.loads((shared_data / "crds" / "jobset-jobset-v1alpha2.json").read_text())
    spec = schema["properties"]["spec"]["properties"]["replicatedJobs"]["items"]["properties"]["template"]
    spec = spec["properties"]["spec"]
    jsonschema.validate(manifest["spec"], spec)
    assert list(unknown(manifest["spec"], spec, "spec")) == []
    assert list(unknown({"completionsMode": "Indexed"}, spec, "spec")) == ["spec.completionsMode"]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert {one["name"] for one in container["env"]} == {"JOB_COMPLETIONS", "JOB_COMPLETION_INDEX"}
    assert container["env"][0]["value"] == str(manifest["spec"]["completions"])


def unknown(value: Any, schema: dict[str, Any], place: str) -> list[str]:
    """Keys that the schema has no property for, where it lists its properties."""
    if isinstance(value, list):
        return [found for one in value for found in unknown(one, schema.get("items", {}), place)]
    known = schema.get("properties")
    if not isinstance(value, dict) or known is None:
        return []
    return [
        found
        for key, one in value.items()
        for found in (unknown(one, known[key], f"{place}.{key}") if key in known else [f"{place}.{key}"])
    ]


@pytest.mark.slow
def test_the_slurm_script_runs_its_share(tmp_path: Path) -> None:
    """As the task that Slurm would start: 1 of 8, which takes the first of nine instances and the ninth."""
    (tmp_path / "night").mkdir()
    for number in range(1, 10):
        (tmp_path / "night" / f"{number}.json").write_text("{}")
    [script] = blocks("bash")
    (tmp_path / "job.sh").write_text(script)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "SLURM_CPUS_PER_TASK": "1",
    }
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    # The instances are none, and each is recorded.
    assert done.returncode == 7, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results-1.jsonl").read_text().splitlines()]
    assert rows[0]["shard"] == "1/8"
    assert [row["job"] for row in rows[1:]] == ["1.json", "9.json"]
