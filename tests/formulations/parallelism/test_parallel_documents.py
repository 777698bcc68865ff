"""Instances and tables as files: what is read, what is refused and where, and plan documents there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from formulations.planning import check_document, load_problem, plan
from planner.errors import DescriptionError
from planner.files import read_as, to_json, write_text
from planner.plan import ParallelDocument

HEADER = "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s"
ROWS = (
    "mixed,both,h100,4,3.0,0.9,0.020",
    "p,prefill,H100_SXM,4,8.0,0.4,",
    "d,decode,h100_sxm,4,8.0,,0.030",
)


def instance(folder: Path, rows: tuple[str, ...] = ROWS, header: str = HEADER, **changes: Any) -> Path:
    """An instance with its table: 3 nodes of 4 GPUs, where a mixed worker and one of each side serve 11 requests/s."""
    (folder / "workers.csv").write_text("\n".join((header, *rows)) + "\n")
    path = folder / "case.json"
    base = {
        "problem": "parallel",
        "name": "case",
        "cluster": {"nodes": [{"device": "h100_sxm", "count": 3, "gpus_per_node": 4}]},
        "workload": {"input_tokens": 1000, "output_tokens": 100},
        "candidates": "workers.csv",
    }
    path.write_text(json.dumps({**base, **changes}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DescriptionError) as refused:
        load_problem(path)
    return str(refused.value)


def test_devices_are_read_as_the_catalogue_reads_them(tmp_path: Path) -> None:
    found = load_problem(instance(tmp_path))
    assert found.device_names == ("h100_sxm",)
    assert found.device.tolist() == [0, 0, 0]
    assert found.role.tolist() == [0, 1, 2]
    assert found.usable.all()
    assert found.source == "given"


def test_a_plan_document_there_and_back(tmp_path: Path) -> None:
    path = instance(tmp_path)
    write_text(tmp_path / "plan.json", to_json(plan(path)))
    document = read_as(tmp_path / "plan.json", ParallelDocument)
    assert document.outcome.status == "optimal"
    assert document.outcome.objective == pytest.approx(-11.0)
    assert document.baseline is not None
    # The rule: three mixed workers, or one of each side.
    assert document.baseline.objective == pytest.approx(-9.0)
    verdict = check_document(document, load_problem(path))
    assert verdict.feasible
    assert {one.name: one.value for one in verdict.metrics}["gpus_idle"] == 0
    assert check_document(document, None).feasible


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda read: read["plan"].update(requests_per_s=12.0), "requests_per_s"),
        (lambda read: read["plan"].update(num_gpus=8), "num_gpus"),
        (lambda read: read["plan"]["workers"][0].update(count=2), "packing"),
        (lambda read: read["plan"]["workers"][0].update(requests_per_s=30.0), "worker"),
        (lambda read: read["outcome"].update(objective=-12.0), "claimed_objective"),
        (lambda read: read.update(plan=None), "no_plan"),
    ],
)
def test_a_tampered_document_is_found(tmp_path: Path, change: Any, rule: str) -> None:
    path = instance(tmp_path)
    read = json.loads(to_json(plan(path)))
    change(read)
    write_text(tmp_path / "plan.json", json.dumps(read))
    verdict = check_document(read_as(tmp_path / "plan.json", ParallelDocument), load_problem(path))
    assert rule in {one.rule for one in verdict.violations}


def test_the_digest_sees_the_table_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("workers.csv", "workers.txt"):
        path = instance(tmp_path, candidates=name)
        (tmp_path / name).write_text("\n".join((HEADER, *ROWS)))
        before = load_problem(path).sha256
        assert load_problem(path).sha256 == before
        (tmp_path / name).write_text("\n".join((HEADER, ROWS[0].replace("3.0", "3.5"))))
        assert load_problem(path).sha256 != before


@pytest.mark.parametrize(("how", "kept"), [("allow", 3), ("only", 2), ("never", 1)])
def test_disaggregated_or_not(tmp_path: Path, how: str, kept: int) -> None:
    """Only: min(8, 8) = 8. Never: 3 x 3 = 9."""
    document = plan(instance(tmp_path, disaggregated=how))
    assert document.outcome.objective == pytest.approx({3: -11.0, 2: -8.0, 1: -9.0}[kept])
    assert len(load_problem(instance(tmp_path, disaggregated=how)).workers) == kept


def test_given_tables_are_taken_at_their_word(tmp_path: Path) -> None:
    """No margin: 0.9 s and 0.030 s keep limits of just that; a little less, and they do not."""
    assert load_problem(instance(tmp_path, slo={"ttft_s": 0.9, "tpot_s": 0.03})).usable.all()
    found = load_problem(instance(tmp_path, slo={"ttft_s": 0.8999, "tpot_s": 0.02999}))
    assert found.usable.tolist() == [False, True, False]
    assert found.dropped == ("1 of 3 workers miss ttft_s 0.8999", "1 of 3 workers miss tpot_s 0.02999")


def test_a_looser_slo_is_never_worse(tmp_path: Path) -> None:
    """TTFT over 0.4 s lets the prefill worker in, over 0.9 s the mixed one: nothing, 8, 11 requests/s."""
    found = [plan(instance(tmp_path, slo={"ttft_s": limit})).outcome.objective for limit in (0.3, 0.5, 1.0)]
    assert found == [None, pytest.approx(-8.0), pytest.approx(-11.0)]


def test_a_rate_asks_for_the_fewest_gpus(tmp_path: Path) -> None:
    load = {"input_tokens": 1000, "output_tokens": 100, "rate_per_s": 7.0}
    found = load_problem(instance(tmp_path, workload=load))
    assert (found.goal, found.target_per_s) == ("gpus", 7.0)
    assert plan(found).outcome.objective == 8


def test_an_slo_below_every_worker_says_so_and_what_helps(tmp_path: Path) -> None:
    outcome = plan(instance(tmp_path, slo={"ttft_s": 0.25})).outcome
    assert outcome.status == "infeasible"
    assert outcome.reasons == ("no prefill worker keeps the limits", "2 of 3 workers miss ttft_s 0.25")
    assert outcome.relaxations == ("raise ttft_s from 0.25 to 0.4: no worker is faster",)
    assert plan(instance(tmp_path, slo={"ttft_s": 0.4})).outcome.status == "optimal"


def test_a_rate_too_high_says_the_highest(tmp_path: Path) -> None:
    load = {"input_tokens": 1000, "output_tokens": 100, "rate_per_s": 12.0}
    outcome = plan(instance(tmp_path, workload=load)).outcome
    assert outcome.status == "infeasible"
    assert outcome.reasons == ("12 requests/s cannot be served on the 12 GPUs of the cluster",)
    assert outcome.relaxations == ("lower rate_per_s from 12 to 11, or add nodes",)
    assert plan(instance(tmp_path, workload={**load, "rate_per_s": 11.0})).outcome.status == "optimal"


def test_missing_columns_are_named(tmp_path: Path) -> None:
    told = refusal(instance(tmp_path, header="name,role,device,num_gpus,ttft_s,tpot_s,x"))
    assert "workers.csv" in told
    assert "requests_per_s" in told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("w,both,h100,0,1,1,1", "num_gpus is '0', not a number of at least 1"),
        ("w,both,h100,1.5,1,1,1", "num_gpus is '1.5', not a whole number"),
        ("w,both,h100,1,-1,1,1", "requests_per_s is '-1'"),
        ("w,both,h100,1,nan,1,1", "requests_per_s is 'nan'"),
        ("w,both,h100,1,inf,1,1", "requests_per_s is 'inf'"),
        ("w,both,h100,1,1,,1", "ttft_s is ''"),
        ("w,decode,h100,1,1,,", "tpot_s is ''"),
        ("w,prefill,h100,1,1,,", "ttft_s is ''"),
        ("w,encode,h100,1,1,1,1", "role is 'encode', not one of both, prefill, decode"),
        (",both,h100,1,1,1,1", "name is empty"),
        ("w,both,,1,1,1,1", "device is empty"),
        ("p,both,h100,1,1,1,1", "'p' is the name of line 3 already"),
    ],
)
def test_impossible_rows_are_located(tmp_path: Path, row: str, told: str) -> None:
    message = refusal(instance(tmp_path, rows=(*ROWS, row)))
    assert "workers.csv:5" in message
    assert told in message


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(instance(tmp_path, rows=("a,both,h100,x,1,1,1", "b,both,h100,1,y,1,1")))
    assert "workers.csv:2" in message
    assert "workers.csv:3" in message


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    assert "has no rows" in refusal(instance(tmp_path, rows=()))


@pytest.mark.parametrize(
    ("changes", "place", "told"),
    [
        ({"cluster": {"nodes": [{"device": "h1000"}]}}, "case.json", "h1000"),
        ({"candidates": "missing.csv"}, "missing.csv", ""),
        ({"cluster": {"nodes": [{"device": "l40s"}]}}, "case.json", "'h100' is not in the cluster, which has l40s"),
        ({"cluster": {"nodes": [{"device": "h100"}, {"device": "h100"}]}}, "case.json", "is in two groups of nodes"),
        ({"candidates": None}, "case.json", "is required, or candidates"),
        ({"objective": "gpus"}, "case.json", "gpus needs workload.rate_per_s"),
        ({"backend": "other"}, "case.json", "vllm"),
        ({"max_workers": 0}, "case.json", "greater than 0"),
        ({"margin": 1.5}, "case.json", "less than or equal to 1"),
        (
            {
                "objective": "cost",
                "workload": {"input_tokens": 1, "output_tokens": 1, "rate_per_s": 1.0},
                "prices_usd_per_gpu_hour": {"l40s": 1.0},
            },
            "case.json",
            "there is no price of",
        ),
    ],
)
def test_mistakes_are_located(tmp_path: Path, changes: dict[str, Any], place: str, told: str) -> None:
    message = refusal(instance(tmp_path, **changes))
    assert place in message
    assert told in message


def test_an_unknown_model_and_precision_are_located(tmp_path: Path) -> None:
    for changes, key in (
        ({"model": "no-such-model"}, "no-such-model"),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct", "precision": "fp3"}, "fp3"),
    ):
        path = instance(tmp_path, candidates=None, **changes)
        message = refusal(path)
        assert key in message
        assert "case.json:1" in message


def test_prices_are_by_any_name_of_the_device(tmp_path: Path) -> None:
    """7 requests/s on 8 GPUs at 2 USD."""
    load = {"input_tokens": 1000, "output_tokens": 100, "rate_per_s": 7.0}
    path = instance(tmp_path, workload=load, objective="cost", prices_usd_per_gpu_hour={"H100": 2.0})
    assert plan(path).outcome.objective == pytest.approx(16.0)
