"""`gpuplan parallel`: flags over files, exit codes, what is printed, exports, and bad input."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import cli.solving

Invoke = Callable[..., Result]

#: By hand, 6 GPUs in nodes of 3: 3 x mixed serve 3/s; 3 x p and 1 x d (3 GPUs) serve 6/s.
WORKERS = """\
name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s,tp
mixed,both,h100_sxm,2,1.5,0.5,0.02,2
p,prefill,h100_sxm,1,2,1.0,,1
d,decode,h100_sxm,3,6,,0.025,3
late,both,h100_sxm,1,9,8.0,0.02,1
"""
INSTANCE: dict[str, Any] = {
    "problem": "parallel",
    "name": "by hand",
    "cluster": {"nodes": [{"device": "h100_sxm", "count": 2, "gpus_per_node": 3}]},
    "candidates": "workers.csv",
    "workload": {"input_tokens": 3000, "output_tokens": 500},
    "slo": {"ttft_s": 2, "tpot_s": 0.03},
}
SMALL = ["--model", "Qwen/Qwen3-8B", "--device", "h100", "--gpus-per-node", "4"]
SMALL += ["--input-tokens", "1000", "--output-tokens", "200"]


@pytest.fixture
def given(folder: Path) -> Path:
    (folder / "workers.csv").write_text(WORKERS)
    (folder / "given.json").write_text(json.dumps(INSTANCE))
    return folder


def counts(result: Result) -> dict[str, int]:
    assert result.exit_code == 0, result.output
    return {one["name"]: one["count"] for one in json.loads(result.stdout)["plan"]["workers"]}


def test_a_table_is_solved_exactly(gpuplan: Invoke, given: Path) -> None:
    result = gpuplan("parallel", "given.json", "--json")
    assert counts(result) == {"p": 3, "d": 1}
    document = json.loads(result.stdout)
    assert document["plan"]["requests_per_s"] == pytest.approx(6)
    assert document["plan"]["output_tokens_per_s"] == pytest.approx(3000)
    assert (document["plan"]["ttft_s"], document["plan"]["tpot_s"]) == (1.0, 0.025)
    assert document["outcome"]["status"] == "optimal"
    assert {one["name"] for one in document["plan"]["pareto"]} == {"mixed", "p", "d"}
    assert json.loads(gpuplan("plan", "given.json", "--json").stdout)["plan"] == document["plan"]


def test_flags_alone_make_the_same_instance(gpuplan: Invoke, given: Path) -> None:
    flags = ["--name", "by hand", "--candidates", "workers.csv", "--device", "h100_sxm", "--nodes", "2"]
    flags += ["--gpus-per-node", "3", "--input-tokens", "3000", "--output-tokens", "500", "--ttft", "2s"]
    result = gpuplan("parallel", *flags, "--tpot", "30ms", "--json")
    assert counts(result) == {"p": 3, "d": 1}
    other = json.loads(gpuplan("plan", "given.json", "--json").stdout)
    assert json.loads(result.stdout)["instance"] == other["instance"]


def test_flags_win_over_the_file(gpuplan: Invoke, given: Path) -> None:
    assert counts(gpuplan("parallel", "given.json", "--disaggregated", "never", "--json")) == {"mixed": 2}
    assert counts(gpuplan("parallel", "given.json", "--ttft", "9", "--json")) == {"late": 6}
    assert counts(gpuplan("parallel", "given.json", "--max-workers", "2", "--json")) == {"mixed": 2}
    one_node = json.dumps({"nodes": [{"device": "h100_sxm", "gpus_per_node": 3}]})
    (given / "one.json").write_text(one_node)
    assert counts(gpuplan("parallel", "given.json", "--cluster", "one.json", "--json")) == {"mixed": 1}


def test_a_table_of_the_flag_is_in_the_working_folder(gpuplan: Invoke, given: Path) -> None:
    (given / "away").mkdir()
    (given / "away" / "given.json").write_text(json.dumps(INSTANCE))
    (given / "mine.csv").write_text(WORKERS.replace("p,prefill,h100_sxm,1,2,", "p,prefill,h100_sxm,1,1,"))
    result = gpuplan("parallel", "away/given.json", "--candidates", "mine.csv", "--json")
    assert json.loads(result.stdout)["plan"]["requests_per_s"] == pytest.approx(3)
    assert gpuplan("parallel", "away/given.json").exit_code == 7, "the file's own table is beside the file"


def test_a_rate_takes_the_fewest_gpus_or_the_least_cost(gpuplan: Invoke, given: Path) -> None:
    """3 requests/s: 2 mixed are 4 GPUs, 2 p and 1 d are 5; a price of 2 USD makes that 8 USD/hour."""
    result = gpuplan("parallel", "given.json", "--rate", "3", "--json")
    assert counts(result) == {"mixed": 2}
    assert json.loads(result.stdout)["outcome"]["objective"] == 4
    cost = ["--rate", "3", "--objective", "cost", "--price", "h100=$2"]
    result = gpuplan("parallel", "given.json", *cost, "--json")
    assert json.loads(result.stdout)["outcome"]["objective"] == pytest.approx(8)
    text = gpuplan("parallel", "given.json", *cost).stdout
    assert "3 requests/s asked" in text
    assert "8 USD/hour, 1.48148 USD per million output tokens" in text, "8 / 3600 / 1500 * 1e6"


def test_the_answer_says_what_was_chosen_from_what(gpuplan: Invoke, given: Path) -> None:
    text = gpuplan("parallel", "given.json").stdout
    assert "6 requests/s; 3000 output tokens/s" in text
    assert "3 x p" in text
    assert "limit 2 s" in text
    frontier = text[text.index("Pareto frontier") : text.index("runner-up")]
    assert "p *" in frontier
    assert "mixed *" not in frontier
    assert (
        "the best without p, with no other prefill worker: -3 requests/s (-50%), 3 requests/s on 4 GPUs: 2 x mixed"
        in text
    )
    assert "all 6 h100_sxm are used; 1 of 4 workers miss ttft_s 2" in text
    assert "best uniform replicas" in text
    assert "gpuplan estimate" not in text, "the workers were not predicted"


def test_predictions_can_be_looked_into(gpuplan: Invoke, folder: Path) -> None:
    """The command under a mixed worker gives the very numbers of the plan."""
    result = gpuplan("parallel", *SMALL, "--tpot", "20ms", "--disaggregated", "never", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    assert (plan["model"], plan["backend"], plan["gpus_per_node"]) == ("Qwen/Qwen3-8B", "vllm", {"h100_sxm": 4})
    lines = [line.split("look into")[1] for line in result.stdout.splitlines() if "look into" in line]
    assert len(lines) == len(plan["workers"])
    for line, worker in zip(lines, plan["workers"], strict=True):
        program, *argv = shlex.split(line, comments=True)
        assert program == "gpuplan"
        metrics = json.loads(gpuplan(*argv, "--json").stdout)["verdict"]["metrics"]
        values = {one["name"]: one["value"] for one in metrics}
        assert values["tpot_s"] == pytest.approx(worker["tpot_s"])
        assert values["ttft_s"] == pytest.approx(worker["ttft_s"])


def test_the_search_leaves_out_what_the_engine_cannot_run(gpuplan: Invoke, folder: Path) -> None:
    """vLLM's pairs have no pipeline stages; SGLang's may, so that it has the more to choose from."""
    only = [*SMALL, "--disaggregated", "only", "--json"]
    documents = {to: json.loads(gpuplan("parallel", *only, "--backend", to).stdout) for to in ("vllm", "sglang")}
    notes = {to: " ".join(document["verdict"]["assumptions"]) for to, document in documents.items()}
    assert "0 more that sglang cannot run" in notes["sglang"]
    assert " 0 more that vllm" not in notes["vllm"]
    plan = documents["vllm"]["plan"]
    assert not [one["name"] for one in (*plan["workers"], *plan["pareto"]) if "-pp" in one["name"]]


def test_limits_hold_with_the_margin(gpuplan: Invoke, folder: Path) -> None:
    plain = json.loads(gpuplan("parallel", *SMALL, "--tpot", "12ms", "--margin", "0", "--json").stdout)["plan"]
    wide = json.loads(gpuplan("parallel", *SMALL, "--tpot", "12ms", "--margin", "0.5", "--json").stdout)["plan"]
    assert 0.008 < plain["tpot_s"] <= 0.012
    assert wide["tpot_s"] <= 0.008
    assert wide["requests_per_s"] < plain["requests_per_s"]


@pytest.mark.parametrize("to", ["vllm", "sglang", "trtllm"])
def test_a_plan_becomes_a_script(gpuplan: Invoke, folder: Path, to: str) -> None:
    assert gpuplan("parallel", *SMALL, "--backend", to, "-o", "plan.json", "--quiet").exit_code == 0
    result = gpuplan("export", "plan.json", "--to", to, "-o", "serve.sh")
    assert result.exit_code == 0, result.output
    text = (folder / "serve.sh").read_text()
    assert "Qwen/Qwen3-8B" in text
    others = {"vllm", "sglang", "trtllm"} - {to}
    for other in others:
        refused = gpuplan("export", "plan.json", "--to", other, "-o", "no.sh")
        assert refused.exit_code == 2
        assert f"made for {to}, not {other}" in refused.stderr
    assert gpuplan("export", "plan.json", "--to", "moves", "-o", "no.csv").exit_code == 2
    assert gpuplan("check", "plan.json").exit_code == 0


def test_a_table_without_sizes_has_no_script(gpuplan: Invoke, given: Path) -> None:
    (given / "workers.csv").write_text("\n".join(line.rpartition(",")[0] for line in WORKERS.splitlines()))
    assert gpuplan("parallel", "given.json", "--model", "mine", "-o", "plan.json", "--quiet").exit_code == 0
    refused = gpuplan("export", "plan.json", "--to", "vllm", "-o", "no.sh")
    assert refused.exit_code == 2
    assert "d: tp x pp x dp x cp is 1, but it has 3 GPUs" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ttft", "100ms"], ["no mixed, prefill or decode worker keeps", "raise ttft_s from 0.1 to 0.5"]),
        (["--tpot", "1ms"], ["raise tpot_s from 0.001 to 0.02: no worker is faster"]),
        (["--rate", "100"], ["100 requests/s cannot be served on the 6 GPUs", "lower rate_per_s from 100 to 6"]),
    ],
)
def test_what_cannot_be_is_proven_with_ways_out(
    gpuplan: Invoke, given: Path, flags: list[str], expected: list[str]
) -> None:
    if "--ttft" in flags:
        # Decode workers alone keep any limit on the first token.
        (given / "workers.csv").write_text("".join(WORKERS.splitlines(True)[:3] + WORKERS.splitlines(True)[4:]))
    result = gpuplan("parallel", "given.json", *flags)
    assert result.exit_code == 3, result.output
    for text in expected:
        assert text in result.stdout


def test_a_model_that_fits_nowhere_says_what_it_needs(gpuplan: Invoke, folder: Path) -> None:
    """70 billion weights of 2 bytes are 141 GB: 2 H100 hold it; one holds 4 bits, and at 8 bits nothing but weights."""
    flags = ["--model", "meta-llama/Llama-3.3-70B-Instruct", "--device", "h100", "--gpus-per-node", "1"]
    result = gpuplan("parallel", *flags, "--input-tokens", "1000", "--output-tokens", "200")
    assert result.exit_code == 3, result.output
    assert "fits at no split" in result.stdout
    assert "2 x h100_sxm in nodes of 1 hold it" in result.stdout
    assert "precision int4 fits on this cluster" in result.stdout
    again = gpuplan("parallel", *flags, "--nodes", "2", "--input-tokens", "1000", "--output-tokens", "200")
    assert again.exit_code == 0, "what it said is so"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--device", "h100", "--cluster", "c.yaml"], "choose one of --cluster and --device"),
        (["--nodes", "2"], "--nodes, --gpus-per-node and --link go with --device"),
        (["--backend", "other"], "is not one of"),
        (["--disaggregated", "maybe"], "is not one of"),
        (["--objective", "speed"], "is not one of"),
        (["--method", "cp-sat"], "parallel has no method 'cp-sat'"),
        (["--time-limit", "-1"], "time"),
    ],
)
def test_usage(gpuplan: Invoke, given: Path, flags: list[str], expected: str) -> None:
    result = gpuplan("parallel", "given.json", *flags)
    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ttft", "2 parsecs"], "--ttft"),
        (["--ttft", "0"], "--ttft"),
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--margin", "-1"], "--margin"),
        (["--mix", "1000-200"], "--mix"),
        (["--hourly", "1,two"], "--hourly"),
        (["--max-workers", "0"], "--max-workers"),
        (["--input-tokens", "0"], "--input-tokens"),
        (["--price", "h100"], "--price"),
        (["--price", "h100=-2"], "--price"),
        (["--price", "nosuch=2"], "nosuch"),
        (["--objective", "cost", "--rate", "1"], "cost needs prices_usd_per_gpu_hour"),
        (["--objective", "gpus"], "gpus needs workload.rate_per_s"),
        (["--device", "nosuch"], "--device"),
        (["--device", "h100", "--nodes", "0"], "--device"),
        (["--device", "l40s"], "is not in the cluster"),
        (["--cluster", "none.yaml"], "none.yaml"),
        (["--candidates", "none.csv"], "none.csv"),
    ],
)
def test_bad_values_are_told_where_they_are(gpuplan: Invoke, given: Path, flags: list[str], expected: str) -> None:
    result = gpuplan("parallel", "given.json", *flags)
    assert result.exit_code == 7, result.output
    assert expected in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([*SMALL, "--precision", "fp3"], "unknown precision 'fp3'"),
        (["--model", "nosuch", *SMALL[2:]], "the catalogue has no model 'nosuch'"),
        (["--model", "none/config.json", *SMALL[2:]], "none/config.json"),
        (SMALL[2:], "is required, or candidates"),
        (SMALL[:2], "--cluster or --device: is required"),
        (SMALL[:6], "--input-tokens and --output-tokens: is required"),
        (SMALL[:8], "--output-tokens: is required"),
    ],
)
def test_bad_models_are_told(gpuplan: Invoke, folder: Path, flags: list[str], expected: str) -> None:
    result = gpuplan("parallel", *flags)
    assert result.exit_code == 7, result.output
    assert expected in result.stderr


def test_all_rows_of_a_bad_table_are_told_with_their_lines(gpuplan: Invoke, given: Path) -> None:
    (given / "workers.csv").write_text(WORKERS.replace("p,prefill", "p,fast").replace(",3,6,", ",0,6,"))
    result = gpuplan("parallel", "given.json")
    assert result.exit_code == 7
    assert "workers.csv:3" in result.stderr
    assert "workers.csv:4" in result.stderr
    (given / "workers.csv").write_text(WORKERS.replace("tpot_s", "itl_s"))
    result = gpuplan("parallel", "given.json")
    assert result.exit_code == 7
    assert "tpot_s" in result.stderr


def test_stopped_short_of_the_gap_and_without_a_plan(
    gpuplan: Invoke, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = cli.solving.plan

    def stopped(*arguments: Any, **options: Any) -> Any:
        document = solve(*arguments, **options)
        changes = {"status": "feasible", "stop": "time_limit", "gap": 0.5}
        return document.model_copy(update={"outcome": document.outcome.model_copy(update=changes)})

    monkeypatch.setattr(cli.solving, "plan", stopped)
    assert gpuplan("parallel", "given.json", "--gap", "0.01", "--quiet").exit_code == 4
    assert gpuplan("parallel", "given.json", "--quiet").exit_code == 0

    def nothing(*arguments: Any, **options: Any) -> Any:
        document = stopped(*arguments, **options)
        changes = {"status": "unknown", "objective": None, "gap": None}
        outcome = document.outcome.model_copy(update=changes)
        return document.model_copy(update={"outcome": outcome, "plan": None, "verdict": None})

    monkeypatch.setattr(cli.solving, "plan", nothing)
    assert gpuplan("parallel", "given.json", "--quiet").exit_code == 5


def test_a_rate_beside_throughput_is_said_not_to_count(gpuplan: Invoke, given: Path) -> None:
    result = gpuplan("parallel", "given.json", "--rate", "1", "--objective", "throughput")
    assert "6 requests/s;" in result.stdout
    assert "throughput is asked, so the rate of 1 requests/s is not" in result.stdout


def test_a_percentile_is_said_not_to_be_judged(gpuplan: Invoke, given: Path) -> None:
    slow = INSTANCE | {"slo": {"ttft_s": 2, "percentile": 99}}
    (given / "given.json").write_text(json.dumps(slow))
    assert "limits are held by means: percentile 99 is not judged" in gpuplan("parallel", "given.json").stdout


def test_plans_are_compared_by_their_workers(gpuplan: Invoke, given: Path) -> None:
    gpuplan("parallel", "given.json", "-o", "one.json", "--quiet")
    gpuplan("parallel", "given.json", "--disaggregated", "never", "-o", "two.json", "--quiet")
    result = gpuplan("compare", "one.json", "two.json")
    assert result.exit_code == 0, result.output
    assert "one.json -> two.json: -3 p, -1 d, +2 mixed" in result.stdout
    moves = json.loads(gpuplan("compare", "one.json", "two.json", "--json").stdout)["moves"]
    assert moves[0]["workers"] == {"p": -3, "d": -1, "mixed": 2}
    assert "the same workers" in gpuplan("compare", "one.json", "one.json").stdout


def test_schemas(gpuplan: Invoke, folder: Path) -> None:
    assert "disaggregated" in json.loads(gpuplan("schema", "parallel").stdout)["properties"]
    assert "plan" in json.loads(gpuplan("schema", "parallel-plan").stdout)["properties"]


DRAFTS = ("parallel", "--model", "deepseek-ai/DeepSeek-V3", "--device", "h200_sxm", "--backend", "sglang",
          "--input-tokens", "2000", "--output-tokens", "500", "--tpot", "10ms", "--disaggregated", "never")  # fmt: skip


def test_drafts_from_flags_to_a_manifest(gpuplan: Invoke, folder: Path) -> None:
    """One draft that is mostly right keeps a limit that no worker keeps without; the pods ask for it."""
    made = gpuplan(*DRAFTS, "--draft-tokens", "1", "-o", "plan.json", "--quiet")
    assert made.exit_code == 0, made.stderr
    assert gpuplan("export", "plan.json", "--to", "lws", "-o", "lws.yaml").exit_code == 0
    text = (folder / "lws.yaml").read_text()
    assert "kind: LeaderWorkerSet" in text
    assert "--speculative-algorithm NEXTN" in text
    refused = gpuplan("export", "plan.json", "--to", "disaggregatedset", "-o", "no.yaml")
    assert refused.exit_code == 2
    assert "only mixed ones" in refused.stderr


def test_drafts_of_a_model_without_an_mtp_layer(gpuplan: Invoke) -> None:
    refused = gpuplan("parallel", "--model", "Qwen/Qwen3-8B", *DRAFTS[3:], "--draft-tokens", "1")
    assert refused.exit_code == 7
    assert "has no MTP layer" in refused.stderr


def test_hours_and_a_plan_in_force_are_told_with_their_steps(gpuplan: Invoke, given: Path) -> None:
    """3 requests/s: 2 mixed, 4 GPUs; 1.5: one. A mixed worker starts from one, and stops again."""
    (given / "hours.json").write_text(gpuplan("parallel", "given.json", "--hourly", "1.5,3,1.5,0", "--json").stdout)
    plan = json.loads((given / "hours.json").read_text())["plan"]
    assert {tuple(one["hours"]): one["num_gpus"] for one in plan["periods"]} == {(0, 2): 2, (1,): 4, (3,): 0}
    text = gpuplan(
        "parallel", "given.json", "--hourly", "1.5,3,1.5,0", "--price", "h100=2", "--objective", "cost"
    ).stdout
    assert "8 GPU-hours in 4 hours; 16 with the most of them throughout; 16 USD" in text
    assert "before hour 1: start 1 x mixed" in text
    assert "before hour 3: stop 1 x mixed" in text
    flags = ["parallel", "given.json", "--rate", "3", "--change-cost", "0.5"]
    (given / "now.json").write_text(gpuplan("parallel", "given.json", "--rate", "1.5", "--json").stdout)
    document = json.loads(gpuplan(*flags, "--current", "now.json", "--json").stdout)
    assert document["outcome"]["terms"]["changes"] == pytest.approx(1.0), "2 GPUs start"
    assert document["outcome"]["objective"] == pytest.approx(5.0)
    assert gpuplan("check", "hours.json", "--instance", "given.json").exit_code == 6, "another instance"
    again = gpuplan("plan", "given.json", "--current", "now.json", "--json")
    assert json.loads(again.stdout)["plan"]["changes"][0]["hour"] == 0
    (given / "other.json").write_text(json.dumps(INSTANCE))
    assert gpuplan("parallel", "given.json", "--current", "other.json").exit_code == 7


def test_requests_of_several_sizes_are_routed(gpuplan: Invoke, folder: Path) -> None:
    result = gpuplan("parallel", *SMALL, "--mix", "8000/100=0.5", "--ttft", "2s", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    assert {(one["input_tokens"], one["output_tokens"]) for one in plan["routing"]} == {(1000, 200), (8000, 100)}
    assert "requests of tokens" in result.stdout
    by_size = {8000: 0.0, 1000: 0.0}
    roles = {one["name"]: one["role"] for one in plan["workers"]}
    for one in plan["routing"]:
        by_size[one["input_tokens"]] += one["requests_per_s"] * (roles[one["worker"]] != "prefill")
    assert by_size[8000] == pytest.approx(by_size[1000] / 2)


def test_the_answer_tells_intervals_shares_reliefs_and_the_frontier_of_plans(gpuplan: Invoke, folder: Path) -> None:
    text = gpuplan("parallel", *SMALL, "--tpot", "15ms", "--slo-confidence", "0.9").stdout
    assert "80 % of measurements:" in text
    assert "its TPOT (prefill: TTFT) goes to" in text
    assert "best plan with TPOT" in text
    assert "nodes of h100_sxm from 1 to 2: +" in text
    watts = gpuplan("parallel", *SMALL, "--rate", "5", "--objective", "joules").stdout
    assert "J an output token" in watts


def test_flags_become_an_instance(gpuplan: Any, folder: Path) -> None:
    """--save-instance: what the flags said, as a file that gives the same plan, a report and a check."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(TINY_CONFIG))
    flags = ["--model", "model", "--checkpoint", "org/tiny", "--device", "h100_sxm", "--input-tokens", "500"]
    flags += ["--output-tokens", "100", "--rate", "2", "--tpot", "50ms"]
    result = gpuplan("parallel", *flags, "--save-instance", "tiny.yaml", "-o", "plan.json", "--quiet")
    assert result.exit_code == 0, result.output
    assert gpuplan("check", "plan.json", "--instance", "tiny.yaml").exit_code == 0
    again = gpuplan("plan", "tiny.yaml", "--json", "--quiet")
    first = json.loads((folder / "plan.json").read_text())
    assert json.loads(again.stdout)["instance"] == first["instance"]
    assert first["plan"]["checkpoint"] == "org/tiny"
    assert first["plan"]["model"] == "model/config.json"
    (folder / "away").mkdir()
    refused = gpuplan("parallel", *flags, "--save-instance", "away/tiny.yaml", "-o", "plan.json", "--quiet")
    assert refused.exit_code == 2
    assert "beside the files" in refused.stderr


#: A Hugging Face config of a small dense model.
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 4096, "vocab_size": 32000,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
