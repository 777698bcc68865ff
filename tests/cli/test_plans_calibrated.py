"""Plans take `calibration`: throughput of fleets and workers follows a user's own measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from formulations.planning import load_problem, plan
from planner.errors import DescriptionError
from planner.fleet_plan import FleetPlan
from planner.parallel_plan import ParallelPlan

FLEET = """
problem: fleet
name: calibrated
slo: {{tpot_s: 0.03, ttft_s: 2}}
models: [{{name: m, model: meta-llama/Llama-3.1-8B-Instruct}}]
offers: [{{name: h100, device: h100_sxm, price_usd_per_hour: 3}}]
demand: [{{model: m, input_tokens: 1000, output_tokens: 200, rate_per_s: 300}}]
{calibration}
"""
PARALLEL = """
problem: parallel
name: calibrated
model: meta-llama/Llama-3.1-8B-Instruct
cluster: {{nodes: [{{device: h100_sxm, gpus_per_node: 2}}]}}
workload: {{input_tokens: 1000, output_tokens: 200}}
slo: {{tpot_s: 0.03}}
disaggregated: never
{calibration}
"""


def efficiency(folder: Path, overall: float) -> str:
    one = {
        "model": "meta-llama/Llama-3.1-8B-Instruct", "device": "h100_sxm", "backend": "vllm", "num_runs": 5,
        "multipliers": {"overall": overall},
    }  # fmt: skip
    (folder / "efficiency.yaml").write_text(json.dumps({"schema_version": 1, "gpuplan_version": "1", "serving": [one]}))
    return "calibration: efficiency.yaml"


@pytest.mark.parametrize("text", [FLEET, PARALLEL], ids=["fleet", "parallel"])
def test_slower_measurements_cost_more(tmp_path: Path, text: str) -> None:
    found = []
    for name, line in (("plain", ""), ("slow", efficiency(tmp_path, 1.5))):
        (tmp_path / f"{name}.yaml").write_text(text.format(calibration=line))
        document = plan(load_problem(tmp_path / f"{name}.yaml"))
        made = document.plan
        if isinstance(made, FleetPlan):
            found.append(made.cost_usd_per_hour)
        else:
            assert isinstance(made, ParallelPlan)
            found.append(-made.requests_per_s)
    assert found[0] < found[1]


@pytest.mark.parametrize("text", [FLEET, PARALLEL], ids=["fleet", "parallel"])
def test_the_file_is_part_of_the_instance(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.yaml").write_text(text.format(calibration=efficiency(tmp_path, 1.1)))
    first = load_problem(tmp_path / "one.yaml").sha256
    efficiency(tmp_path, 1.2)
    assert load_problem(tmp_path / "one.yaml").sha256 != first
    (tmp_path / "efficiency.yaml").unlink()
    with pytest.raises(DescriptionError, match=r"efficiency\.yaml"):
        load_problem(tmp_path / "one.yaml")
