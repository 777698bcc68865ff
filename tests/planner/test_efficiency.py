"""efficiency.yaml: round trip, what it changes, and what it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cost.serving.calibrate import CalibrationReport
from planner.cost.serving.coefficients import ADJUSTMENTS, Coefficients
from planner.cost.training.coefficients import TrainingCoefficients
from planner.descriptions.efficiency import Efficiency, ServingEfficiency, TrainingEfficiency, read_efficiency
from planner.errors import DescriptionError
from planner.files import to_json

KEY = ("org/model", "h100_sxm", "vllm")
MULTIPLIERS = {"overall": 1.1, "overhead": 0.9, "prefill": 1.2, "prompt": 0.7, "wait_steps": 2.0}


def made() -> Efficiency:
    coefficients = Coefficients(values={}, adjustments={KEY: MULTIPLIERS})
    report = CalibrationReport(KEY, 5, 0.2, 0.05, None, None)
    return Efficiency.of_serving(coefficients, [report], "1.2.3")


def test_every_adjustment_can_be_written() -> None:
    assert set(MULTIPLIERS) == set(ADJUSTMENTS)
    assert set(ServingEfficiency.model_json_schema()["properties"]["multipliers"]["propertyNames"]["enum"]) == set(
        ADJUSTMENTS
    )


@pytest.mark.parametrize("name", ["efficiency.yaml", "efficiency.json"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(to_json(made()))
    read = read_efficiency(path)
    assert read == made()
    assert read.gpuplan_version == "1.2.3"
    base = Coefficients(values={"dense": 1.0}, adjustments={("a", "b", "c"): {"overall": 2.0}, KEY: {"overall": 9.0}})
    over = read.over(base)
    assert over.adjustments == {("a", "b", "c"): {"overall": 2.0}, KEY: MULTIPLIERS}
    assert over.values == base.values


def test_people_may_write_it_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "efficiency.yaml"
    path.write_text(
        "serving:\n  - {model: org/model, device: h100_sxm, backend: vllm, num_runs: 1, multipliers: {overall: 1.5}}\n"
    )
    assert read_efficiency(path).serving[0].multipliers == {"overall": 1.5}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("backend: vllm -> backend: tgi", "efficiency.yaml:4:5: serving.0.backend"),
        ("overall: 1.5 -> overall: -1", "serving.0.multipliers.overall"),
        ("overall: 1.5 -> overall: .nan", "holds a value with no JSON form|finite|serving.0.multipliers.overall"),
        ("overall: 1.5 -> speed: 2", "serving.0.multipliers.speed"),
        ("num_runs: 1 -> num_runs: 0", "serving.0.num_runs"),
        ("model: m -> model: ''", "serving.0.model"),
        ("serving: -> schema_version: 2\nserving:", "schema_version"),
        ("serving: -> surprise: 1\nserving:", "surprise: unknown key"),
    ],
)
def test_what_it_may_not_say(tmp_path: Path, change: str, told: str) -> None:
    keys = ("model: m", "device: h100_sxm", "backend: vllm", "num_runs: 1", "multipliers: {overall: 1.5}")
    text = "serving:\n  - " + "\n    ".join(keys) + "\n"
    before, _, after = change.partition(" -> ")
    assert before in text
    path = tmp_path / "efficiency.yaml"
    path.write_text(text.replace(before, after))
    with pytest.raises(DescriptionError, match=told):
        read_efficiency(path)


def test_one_entry_for_one_thing(tmp_path: Path) -> None:
    entry = made().serving[0]
    with pytest.raises(ValueError, match="there is an entry for org/model, h100_sxm, vllm already"):
        Efficiency(serving=(entry, entry))


def test_training_coefficients_by_device_and_framework() -> None:
    found = TrainingCoefficients(
        gemm_efficiency=0.7, narrow_gemm=64, attention_efficiency=0.3, traffic=1.5, link_efficiency=0.5, overlap=0.8
    )
    own = Efficiency(
        training=(TrainingEfficiency(device="h100_sxm", framework="mine", num_runs=3, coefficients=found),)
    )
    assert own.of_training("h100_sxm", "mine") == found
    assert own.of_training("h100_sxm", "megatron") is None
    assert own.of_training("a100_sxm", "mine") is None
