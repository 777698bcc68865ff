"""`gpuplan plan`: exit codes, what goes to which stream, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import cli.solving
from planner.errors import InvalidPlanError, SolverError
from planner.plan import ExpertsDocument

Invoke = Callable[..., Result]
FAST = ("--method", "eplb")


def test_summary_gives_answer_margin_baseline_and_bound(gpuplan: Invoke) -> None:
    result = gpuplan("plan", "small.json", "--work-limit", "200", "--threads", "1")
    assert result.exit_code == 0
    assert result.stderr == ""
    words = ["small: ", "objective", "balancedness", "100.00 MiB of 300.00 MiB free", "EPLB", "no plan is below", "gap"]
    places = [result.stdout.index(word) for word in words]
    assert places == sorted(places)


def test_json_is_the_document_alone(gpuplan: Invoke) -> None:
    result = gpuplan("plan", "small.json", "--json", *FAST)
    assert result.exit_code == 0
    document = ExpertsDocument.model_validate_json(result.stdout)
    assert document.instance.name == "small"
    assert document.verdict is not None
    assert result.stderr == ""


def test_output_file_is_the_same_document_and_nothing_else_is_left(gpuplan: Invoke, folder: Path) -> None:
    before = set(folder.iterdir())
    result = gpuplan("plan", "small.json", "-o", "plan.json", *FAST)
    assert result.exit_code == 0
    assert "plan.json" in result.stdout
    assert set(folder.iterdir()) - before == {folder / "plan.json"}
    printed = json.loads(gpuplan("plan", "small.json", "-o", "-", *FAST).stdout)
    written = json.loads((folder / "plan.json").read_text())
    assert written["plan"] == printed["plan"]


def test_quiet_with_a_file_says_nothing(gpuplan: Invoke) -> None:
    result = gpuplan("plan", "small.json", "-o", "plan.json", "--quiet", *FAST)
    assert (result.exit_code, result.output) == (0, "")


def test_instance_from_standard_input(gpuplan: Invoke, instance: dict[str, Any]) -> None:
    result = gpuplan("plan", "-", "--json", *FAST, stdin=json.dumps(instance))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["instance"]["name"] == "small"


def test_repeatable_on_one_thread_with_a_work_limit(gpuplan: Invoke) -> None:
    limits = ("--work-limit", "300", "--threads", "1", "--seed", "5", "--json")
    one, two = (json.loads(gpuplan("plan", "small.json", *limits).stdout) for _ in range(2))
    assert one["plan"] == two["plan"]
    assert (one["outcome"]["seed"], one["outcome"]["num_threads"]) == (5, 1)


def test_current_plan_makes_moves_and_they_are_told(gpuplan: Invoke, plan_file: Path) -> None:
    limits = ("--work-limit", "200", "--threads", "1")
    result = gpuplan("plan", "small.json", "--current", plan_file.name, *limits)
    assert result.exit_code == 0
    assert " replicas, " in result.stdout
    document = json.loads(gpuplan("plan", "small.json", "--current", plan_file.name, "--json", *limits).stdout)
    assert document["plan"]["moves"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "oracle"), "choose from local-search"),
        (("--time-limit", "-1"), "time limit must be positive"),
        (("--time-limit", "inf"), "time limit must be positive and finite"),
        (("--threads", "0"), "number of threads"),
        (("--gap", "-0.1"), "gap must be"),
        (("--work-limit", "5", "--method", "eplb"), "no work to limit"),
        (("--colour", "red"), "No such option"),
    ],
)
def test_refused_options_exit_2_with_the_reason(gpuplan: Invoke, arguments: tuple[str, ...], message: str) -> None:
    result = gpuplan("plan", "small.json", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_infeasible_exits_3_with_reasons_and_ways_out(gpuplan: Invoke, folder: Path, instance: dict[str, Any]) -> None:
    (folder / "tight.json").write_text(json.dumps({**instance, "gpu_memory_bytes": "100MiB"}))
    result = gpuplan("plan", "tight.json", "-o", "plan.json")
    assert result.exit_code == 3
    assert result.stdout.index("because") < result.stdout.index("each of these changes")
    assert f"gpu_memory_bytes: {200 * 2**20}" in result.stdout
    assert json.loads((folder / "plan.json").read_text())["outcome"]["status"] == "infeasible"
    as_json = gpuplan("plan", "tight.json", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["plan"] is None
    assert "gpu_memory_bytes" in as_json.stderr


def test_short_of_the_asked_gap_exits_4_and_still_gives_the_plan(gpuplan: Invoke) -> None:
    result = gpuplan("plan", "small.json", "--json", "--gap", "0", *FAST)
    assert result.exit_code == 4
    assert json.loads(result.stdout)["plan"] is not None


def test_within_the_asked_gap_exits_0(gpuplan: Invoke) -> None:
    result = gpuplan("plan", "small.json", "--json", "--gap", "5", *FAST)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["outcome"]["gap"] < 5


def test_no_plan_in_time_exits_5(gpuplan: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_time(*arguments: Any, **options: Any) -> ExpertsDocument:
        document = _plan(*arguments, **options)
        update = {"status": "unknown", "stop": "time_limit", "objective": None, "gap": None}
        outcome = document.outcome.model_copy(update=update)
        return document.model_copy(update={"outcome": outcome, "plan": None, "verdict": None})

    _plan = cli.solving.plan
    monkeypatch.setattr(cli.solving, "plan", out_of_time)
    result = gpuplan("plan", "small.json", *FAST)
    assert result.exit_code == 5
    assert "no plan found, and none ruled out (stopped at the time limit)" in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 5, "there is no plan"),
        (InvalidPlanError("slot 3 is empty"), 1, "internal error: slot 3 is empty"),
        (SolverError("model refused"), 1, "internal error: model refused"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero"),
    ],
)
def test_crashes_are_one_line_unless_debugging(
    gpuplan: Invoke, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def broken(*arguments: Any, **options: Any) -> ExpertsDocument:
        raise error

    monkeypatch.setattr(cli.solving, "plan", broken)
    monkeypatch.delenv("GPUPLAN_DEBUG", raising=False)
    result = gpuplan("plan", "small.json")
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    if code == 1:
        monkeypatch.setenv("GPUPLAN_DEBUG", "1")
        assert "Traceback" in gpuplan("plan", "small.json").stderr


def test_every_mistake_of_a_file_is_located_in_the_order_of_its_lines(gpuplan: Invoke, folder: Path) -> None:
    (folder / "bad.yaml").write_text(
        "problem: experts\nname: bad\nnum_gpus: 0\nnum_slots: 20\ncolor: red\nloads:\n  - {file: a.npy, weight: -1}\n"
    )
    result = gpuplan("plan", "bad.yaml")
    assert result.exit_code == 7
    assert result.stdout == ""
    places = [line.split(" ")[0] for line in result.stderr.splitlines()]
    assert places == ["bad.yaml:3:1:", "bad.yaml:5:1:", "bad.yaml:7:19:"]


@pytest.mark.parametrize("text", ["{", "[1, 2]", "", "problem: teapot", "null"])
def test_what_is_no_instance_exits_7(gpuplan: Invoke, text: str) -> None:
    result = gpuplan("plan", "-", stdin=text)
    assert result.exit_code == 7
    assert result.stderr.startswith("<stdin>")


@pytest.mark.parametrize("path", ["missing/plan.json", "."])
def test_an_unwritable_output_exits_7_before_solving(
    gpuplan: Invoke, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(cli.solving, "plan", lambda *a, **k: pytest.fail("solved first"))
    result = gpuplan("plan", "small.json", "-o", path)
    assert result.exit_code == 7
    assert "cannot be written" in result.stderr


def test_help_lists_the_methods(gpuplan: Invoke) -> None:
    text = gpuplan("plan", "--help").stdout
    for name in ("local-search", "eplb", "cp-sat"):
        assert name in text
