"""Launch scripts: run with programs that only tell their arguments, which the engines' own tables then judge."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_plan import parsed_by_table

from planner.errors import ExportError
from planner.parallel_plan import ParallelPlan, Workers
from planner.plan import InstanceReference, OutcomeRecord, ParallelDocument
from planner.writers import export

TABLES = {
    "vllm": "engines/vllm-0.33.0-flags.json",
    "sglang": "engines/sglang-0.5.23-flags.json",
    "trtllm": "engines/tensorrt-llm-serve-flags.json",
}
#: What comes before an engine's flags.
HEADS = {
    "vllm": ["vllm", "serve", "the model"],
    "sglang": ["python", "-m", "sglang.launch_server"],
    "trtllm": ["trtllm-serve", "the model"],
}


def worker(role: str = "both", *, count: int = 1, name: str | None = None, **sizes: Any) -> Workers:
    short = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size"}
    short |= {"ep": "expert_parallel_size", "batch": "max_batch_size", "cp": "context_parallel_size"}
    short |= {"redundant": "redundant_experts", "drafts": "draft_tokens", "step": "max_num_batched_tokens"}
    short |= {"overlap": "two_batch_overlap"}
    gpus = sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("dp", 1) * sizes.get("cp", 1)
    return Workers.model_validate(
        {
            "name": name or f"{role}-{'-'.join(f'{key}{size}' for key, size in sizes.items())}",
            "role": role, "device": "h100_sxm", "num_gpus": gpus, "requests_per_s": 1.0, "count": count,
            "ttft_s": None if role == "decode" else 1.5, "tpot_s": None if role == "prefill" else 0.02,
        }
        | {short[key]: size for key, size in sizes.items()}
    )  # fmt: skip


def document(*workers: Workers, **said: Any) -> ParallelDocument:
    gpus = sum(one.num_gpus * one.count for one in workers)
    mixed = sum(one.requests_per_s * one.count for one in workers if one.role == "both")
    pairs = [
        sum(one.requests_per_s * one.count for one in workers if one.role == role) for role in ("prefill", "decode")
    ]
    rate = mixed + min(pairs)
    plan = ParallelPlan.model_validate(
        {
            "workers": workers, "num_gpus": gpus, "requests_per_s": rate, "ttft_s": 1.5, "tpot_s": 0.02,
            "output_tokens_per_s": rate * 500, "output_tokens_per_s_per_gpu": rate * 500 / gpus,
            "model": "the model", "input_tokens": 3000, "output_tokens": 500, "gpus_per_node": {"h100_sxm": 8},
        }
        | said
    )  # fmt: skip
    outcome = OutcomeRecord(
        status="optimal", stop="proof", objective=-rate, objective_unit="requests/s", bound=-rate, gap=0, build_s=0,
        solve_s=0, solver="none", solver_version="0", method="none", seed=0, num_threads=1,
    )  # fmt: skip
    instance = InstanceReference(name="tiny\nrm -rf /", sha256="5ea1" * 16)
    return ParallelDocument(problem="parallel", instance=instance, gpuplan_version="0.1.0", outcome=outcome, plan=plan)


class Started:
    """A worker started by a script whose programs only tell what they were given."""

    def __init__(self, folder: Path, plan: ParallelDocument, to: str, name: str, *more: str, **environment: str):
        script = folder / "serve.sh"
        export(plan, to, str(script))
        self.text = script.read_text()
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        for program in ("vllm", "python", "trtllm-serve", "srun"):
            path = programs / program
            path.write_text(f"#!/bin/bash\nprintf '%s\\0' {program} \"$@\"\n")
            path.chmod(0o755)
        self.run = subprocess.run(
            ["/bin/bash", str(script), name, *more],
            cwd=folder,
            env={"PATH": f"{programs}:/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
        )
        self.argv = self.run.stdout.split("\0")[:-1]


def flags(started: Started, to: str, table: Path) -> dict[str, str | None]:
    """The engine's flags, all of which its table has."""
    assert started.run.returncode == 0, started.run.stderr
    head = HEADS[to]
    assert started.argv[: len(head)] == head
    return parsed_by_table(started.argv[len(head) :], table)


MOE = worker("both", tp=1, dp=8, ep=8, batch=100)


@pytest.mark.parametrize(
    ("to", "one", "expected"),
    [
        ("vllm", worker(tp=4, pp=2, batch=64), {
            "--tensor-parallel-size": "4", "--pipeline-parallel-size": "2", "--max-num-seqs": "64",
            "--max-num-batched-tokens": "8192", "--max-model-len": "3500", "--gpu-memory-utilization": "0.9",
        }),
        ("vllm", MOE, {
            "--data-parallel-size": "8", "--enable-expert-parallel": None, "--max-num-seqs": "13",
            "--max-num-batched-tokens": "8192", "--max-model-len": "3500", "--gpu-memory-utilization": "0.9",
        }),
        ("sglang", worker(tp=2, dp=4, ep=8, batch=100), {
            "--model-path": "the model", "--tp-size": "8", "--attn-dp-size": "4", "--ep-size": "8",
            "--max-running-requests": "100", "--chunked-prefill-size": "32768", "--context-length": "3500",
        }),
        ("trtllm", MOE, {
            "--tp_size": "8", "--ep_size": "8", "--enable_attention_dp": None, "--max_batch_size": "13",
            "--max_num_tokens": "8192", "--max_seq_len": "3500", "--enable_chunked_prefill": None,
            "--free_gpu_memory_fraction": "0.95", "--config": "worker_1.yaml",
        }),
        ("trtllm", worker(tp=2, pp=4, batch=10), {
            "--tp_size": "2", "--pp_size": "4", "--max_batch_size": "3",
            "--max_num_tokens": "8192", "--max_seq_len": "3500", "--enable_chunked_prefill": None,
            "--free_gpu_memory_fraction": "0.95", "--config": "worker_1.yaml",
        }),
    ],
)  # fmt: skip
def test_sizes_become_flags(
    tmp_path: Path, shared_data: Path, to: str, one: Workers, expected: dict[str, str | None]
) -> None:
    """100 sequences on 8 ranks are 13 each; SGLang counts all ranks, TensorRT-LLM each of the micro-batches."""
    started = Started(tmp_path, document(one), to, one.name)
    assert flags(started, to, shared_data / TABLES[to]) == expected


NODE = {"NODE_RANK": "0", "MASTER_ADDR": "node0"}


@pytest.mark.parametrize(
    ("to", "flag"), [("vllm", "--max-model-len"), ("sglang", "--context-length"), ("trtllm", "--max_seq_len")]
)
def test_the_longest_request_that_a_worker_gets_fits(tmp_path: Path, shared_data: Path, to: str, flag: str) -> None:
    """Of sizes 3000/500 and 8000/800 the first goes to both workers, the second to one of them, in a later hour."""
    short, long = worker(tp=2, name="short"), worker(tp=4, name="long")
    sizes = [
        {"input_tokens": 3000, "output_tokens": 500, "worker": name, "requests_per_s": 1} for name in ("short", "long")
    ]
    later = [*sizes, {"input_tokens": 8000, "output_tokens": 800, "worker": "long", "requests_per_s": 1}]
    hour = {
        "hours": [1],
        "rate_per_s": 1,
        "workers": [short, long],
        "routing": later,
        "requests_per_s": 2,
        "num_gpus": 6,
    }
    plan = document(short, long, routing=sizes, periods=[hour])
    for name, expected in (("short", "3500"), ("long", "8800")):
        started = Started(tmp_path, plan, to, name, MODEL="the model")
        assert flags(started, to, shared_data / TABLES[to])[flag] == expected


def test_wide_experts_over_nodes(tmp_path: Path, shared_data: Path) -> None:
    """DeepEP between nodes, and a redundant expert for each GPU that has none."""
    one = worker("decode", dp=144, ep=144, redundant=32, batch=4608)
    found = flags(Started(tmp_path, document(one), "vllm", one.name, **NODE), "vllm", shared_data / TABLES["vllm"])
    assert found["--data-parallel-size"] == "144"
    assert found["--all2all-backend"] == "deepep_low_latency"
    assert "--enable-eplb" in found
    config = json.loads(str(found["--eplb-config"]))
    assert config == {"num_redundant_experts": 32}
    assert set(config) <= set(json.loads((shared_data / TABLES["vllm"]).read_text())["nested"]["EPLBConfig"])
    found = flags(
        Started(tmp_path, document(one), "sglang", one.name, **NODE), "sglang", shared_data / TABLES["sglang"]
    )
    assert (found["--tp-size"], found["--attn-dp-size"], found["--ep-size"]) == ("144", "144", "144")
    assert (found["--moe-a2a-backend"], found["--ep-num-redundant-experts"]) == ("deepep", "32")
    assert "--enable-eplb" in found


@pytest.mark.parametrize(("to", "flag"), [("vllm", "--enable-dbo"), ("sglang", "--enable-two-batch-overlap")])
def test_two_batches_overlap(tmp_path: Path, shared_data: Path, to: str, flag: str) -> None:
    for overlap in (True, False):
        one = worker("decode", dp=16, ep=16, batch=1024, overlap=overlap)
        found = flags(Started(tmp_path, document(one), to, one.name, **NODE), to, shared_data / TABLES[to])
        assert (flag in found) == overlap


def test_shared_prompts(tmp_path: Path, shared_data: Path) -> None:
    """16 ranks of 8 GPUs share a prompt of 131,072 tokens: SGLang counts all 128, vLLM one rank's 8."""
    one = worker("prefill", tp=8, cp=16, batch=1, step=131072)
    found = flags(Started(tmp_path, document(one), "vllm", one.name, **NODE), "vllm", shared_data / TABLES["vllm"])
    assert (found["--tensor-parallel-size"], found["--prefill-context-parallel-size"]) == ("8", "16")
    assert (found["--max-num-batched-tokens"], found["--nnodes"]) == ("131072", "16")
    found = flags(
        Started(tmp_path, document(one), "sglang", one.name, **NODE), "sglang", shared_data / TABLES["sglang"]
    )
    assert (found["--tp-size"], found["--attn-cp-size"], found["--cp-strategy"]) == ("128", "16", "zigzag")
    assert "--enable-prefill-cp" in found
    assert (found["--chunked-prefill-size"], found["--max-prefill-tokens"]) == ("131072", "131072")


@pytest.mark.parametrize("to", sorted(TABLES))
def test_drafts(tmp_path: Path, shared_data: Path, to: str) -> None:
    one = worker("both", tp=8, batch=16, drafts=2)
    started = Started(tmp_path, document(one), to, one.name)
    found = flags(started, to, shared_data / TABLES[to])
    if to == "vllm":
        config = json.loads(str(found["--speculative-config"]))
        assert config == {"method": "mtp", "num_speculative_tokens": 2}
    elif to == "sglang":
        steps, drafts = found["--speculative-num-steps"], found["--speculative-num-draft-tokens"]
        assert (found["--speculative-algorithm"], steps, drafts) == ("NEXTN", "2", "3")
        assert found["--speculative-eagle-topk"] == "1"
    else:
        yaml = (tmp_path / str(found["--config"])).read_text()
        assert "speculative_config:\n  decoding_type: MTP\n  num_nextn_predict_layers: 2\n" in yaml
    assert "random words are no text" in started.text
    assert "random words" not in Started(tmp_path, document(worker(tp=8)), to, "both-tp8").text


@pytest.mark.parametrize("to", sorted(TABLES))
def test_steps_of_prefill_workers(tmp_path: Path, shared_data: Path, to: str) -> None:
    pair = (worker("prefill", tp=2, batch=4, step=12000), worker("decode", tp=4, batch=32))
    found = flags(Started(tmp_path, document(*pair), to, pair[0].name), to, shared_data / TABLES[to])
    name = {"vllm": "--max-num-batched-tokens", "sglang": "--chunked-prefill-size", "trtllm": "--max_num_tokens"}[to]
    assert found[name] == "12000"


@pytest.mark.parametrize("to", sorted(TABLES))
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_pairs_exchange_caches(tmp_path: Path, shared_data: Path, to: str, role: str) -> None:
    pair = (worker("prefill", tp=2, batch=1, count=2), worker("decode", tp=4, batch=32))
    name = next(one.name for one in pair if one.role == role)
    plan = document(*pair, kv_cache_dtype="fp8", quantization="fp8")
    started = Started(tmp_path, plan, to, name, MODEL="the model")
    found = flags(started, to, shared_data / TABLES[to])
    batch = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests", "trtllm": "--max_batch_size"}[to]
    assert found.get(batch) == ("32" if role == "decode" else None), "a prefill worker queues as it likes"
    if to == "vllm":
        config = json.loads(str(found["--kv-transfer-config"]))
        assert config["kv_connector"] == "NixlConnector"
        nested = json.loads((shared_data / TABLES[to]).read_text())["nested"]["KVTransferConfig"]
        assert set(config) <= set(nested)
        assert config["kv_role"] in nested["kv_role"]
        assert (found["--kv-cache-dtype"], found["--quantization"]) == ("fp8", "fp8")
    elif to == "sglang":
        assert (found["--disaggregation-mode"], found["--kv-cache-dtype"]) == (role, "fp8_e4m3")
    else:
        assert found["--kv_cache_dtype"] == "fp8"
        yaml = (tmp_path / str(found["--config"])).read_text()
        assert "cache_transceiver_config:\n  backend: DEFAULT\n  max_tokens_in_buffer: 3000\n" in yaml
        assert ("disable_overlap_scheduler: true" in yaml) == (role == "prefill")
        assert ("  max_batch_size: 32\n" in yaml) == (role == "decode")


@pytest.mark.parametrize("to", sorted(TABLES))
def test_larger_workers_start_on_every_node(tmp_path: Path, shared_data: Path, to: str) -> None:
    """16 GPUs are 2 nodes of 8; the second node's ranks start at 8."""
    one = worker(tp=1, dp=16, ep=16, batch=64)
    environment = {"NODE_RANK": "1", "MASTER_ADDR": "node0"}
    started = Started(tmp_path, document(one), to, one.name, **environment)
    if to == "trtllm":
        launcher = ["srun", "--nodes", "2", "--ntasks", "16", "--ntasks-per-node", "8", "--mpi=pmix"]
        assert started.argv[:9] == [*launcher, "trtllm-llmapi-launch"]
        found = parsed_by_table(started.argv[11:], shared_data / TABLES[to])
        assert found["--tp_size"] == "16"
        return
    found = flags(started, to, shared_data / TABLES[to])
    if to == "vllm":
        assert found["--data-parallel-size"] == "16"
        assert found["--data-parallel-size-local"] == "8"
        assert (found["--data-parallel-start-rank"], found["--data-parallel-address"]) == ("8", "node0")
    else:
        assert (found["--nnodes"], found["--node-rank"], found["--dist-init-addr"]) == ("2", "1", "node0:5000")
    assert Started(tmp_path, document(one), to, one.name).run.returncode != 0, "NODE_RANK is not set"


def test_vllm_pipelines_over_nodes(tmp_path: Path, shared_data: Path) -> None:
    one = worker(tp=8, pp=2, batch=64)
    started = Started(tmp_path, document(one), "vllm", one.name, NODE_RANK="0", MASTER_ADDR="node0")
    found = flags(started, "vllm", shared_data / TABLES["vllm"])
    assert (found["--nnodes"], found["--node-rank"], found["--master-addr"]) == ("2", "0", "node0")


@pytest.mark.parametrize("to", sorted(TABLES))
def test_names_are_quoted(tmp_path: Path, to: str) -> None:
    """Names come from tables of others: nothing in them is run, and each still starts its worker."""
    name, model = "a b';touch owned;'$(touch owned)*", 'it\'s} $(touch owned) "x"'
    started = Started(tmp_path, document(worker(name=name), model=model), to, name, "--port", "8001")
    assert started.run.returncode == 0, started.run.stderr
    assert model in started.argv
    assert started.argv[-2:] == ["--port", "8001"]
    unknown = Started(tmp_path, document(worker(name=name), model=model), to, "other")
    assert unknown.run.returncode == 2
    assert unknown.run.stderr.startswith("workers: ")
    assert not (tmp_path / "owned").exists()
    comment = [line for line in started.text.splitlines() if "rm -rf" in line]
    assert comment
    assert all(line.startswith("#") for line in comment)


def test_the_model_can_be_said_at_start_and_must_be_where_it_has_to_be_converted(tmp_path: Path) -> None:
    one = worker(tp=2)
    assert "mine" in Started(tmp_path, document(one), "vllm", one.name, MODEL="mine").argv
    converted = document(one, quantization="nvfp4")
    refused = Started(tmp_path, converted, "vllm", one.name)
    assert refused.run.returncode != 0
    assert "set MODEL to a checkpoint of the model in nvfp4" in refused.run.stderr
    assert "mine" in Started(tmp_path, converted, "vllm", one.name, MODEL="mine").argv
    assert Started(tmp_path, document(one, model="a/config.json"), "vllm", one.name).argv[2] == "a"
    named = document(one, model="a/config.json", checkpoint="org/name", quantization="nvfp4")
    assert Started(tmp_path, named, "vllm", one.name).argv[2] == "org/name"
    assert "set MODEL to the weights" in Started(tmp_path, document(one, model="a/b.json"), "vllm", one.name).run.stderr


@pytest.mark.parametrize(
    ("to", "one", "said", "expected"),
    [
        ("vllm", worker(tp=4).model_copy(update={"tensor_parallel_size": 1}), {}, "the columns tp, pp, dp, cp, ep"),
        ("vllm", worker(tp=4, ep=2), {}, "experts over all 4 GPUs of a stage or none"),
        ("vllm", worker("prefill", tp=2, pp=2), {}, "NixlConnector moves no caches of workers with pipeline stages"),
        ("sglang", worker(tp=4, ep=3), {}, "expert_parallel_size 3 does not divide the 4 GPUs"),
        ("trtllm", worker(tp=2, dp=2), {}, "either tensor or data parallel, not 2 x 2"),
        ("sglang", worker(tp=2), {"backend": "vllm"}, "made for vllm, not sglang"),
        ("sglang", worker(tp=2), {"model": None}, "names no model"),
        ("sglang", worker(tp=9), {"gpus_per_node": {"h100_sxm": 8}}, "9 GPUs do not share 2 nodes of 8"),
        ("vllm", worker(tp=8, pp=2, dp=2), {}, "keeps each data-parallel rank in a node"),
        ("trtllm", worker("prefill", tp=4, cp=2), {}, "has no context parallelism for prompts"),
        ("vllm", worker("prefill", tp=2, dp=2, cp=2), {}, "only without data parallelism"),
        ("sglang", worker("decode", tp=4, cp=2), {}, "only prefill workers have them"),
        ("trtllm", worker(dp=16, ep=16, redundant=32), {}, "from a placement file"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(
    tmp_path: Path, to: str, one: Workers, said: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ExportError, match=expected):
        export(document(one, **said), to, str(tmp_path / "serve.sh"))
    assert not list(tmp_path.iterdir())


def test_the_benchmark_is_the_load_of_the_prediction(tmp_path: Path) -> None:
    """A closed loop of 2 x 10 sequences; pairs, and rates below what is possible, at their rate of requests."""

    def said(plan: ParallelDocument) -> str:
        export(plan, "vllm", str(tmp_path / "serve.sh"))
        (line,) = (one for one in (tmp_path / "serve.sh").read_text().splitlines() if "--num-prompts" in one)
        return line

    sizes = "--random-input-len 3000 --random-output-len 500"
    assert said(document(worker(batch=10, count=2))).endswith(f"{sizes} --num-prompts 200 --max-concurrency 20")
    pairs = document(worker("prefill", batch=1), worker("decode", batch=30))
    assert said(pairs).endswith(f"{sizes} --num-prompts 300 --request-rate 1")
    asked = document(worker(batch=10, count=2), output_tokens_per_s=750.0)
    assert said(asked).endswith("--num-prompts 200 --request-rate 1.5")


def test_of_several_sizes_it_is_told_who_serves_which(tmp_path: Path) -> None:
    """Of 4 requests/s of 3000/500, 1 goes to a mixed worker, 3 to a pair; of 9000/500 all to the pair."""
    both, prefill, decode = worker(tp=2, batch=4, name="m"), worker("prefill", name="p"), worker("decode", name="d")
    rates = [(3000, "m", 1.0), (3000, "p", 3.0), (3000, "d", 3.0), (9000, "m", 0.0), (9000, "p", 2.0), (9000, "d", 2.0)]
    routing = [
        {"input_tokens": size, "output_tokens": 500, "worker": name, "requests_per_s": rate}
        for size, name, rate in rates
    ]
    export(document(both, prefill, decode, routing=routing), "vllm", str(tmp_path / "serve.sh"))
    head = (tmp_path / "serve.sh").read_text()
    assert "# requests of 3000/500 tokens: 25.0% to m (both), 75.0% to p (prefill), 75.0% to d (decode)" in head
    assert "# requests of 9000/500 tokens: 100.0% to p (prefill), 100.0% to d (decode)" in head
    # One run of random words has one size.
    assert "--num-prompts" not in head
    assert "replay a trace" in head


def test_a_folder_gets_a_file_of_its_own(tmp_path: Path) -> None:
    export(document(worker()), "vllm", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["serve_vllm.sh"]
