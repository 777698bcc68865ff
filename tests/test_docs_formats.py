"""The commands of docs/formats.md run as they stand, in order, on small files under the names that it uses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from planner.writers import WRITERS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
FLEET = """problem: fleet
name: two offers
models: [{name: m}]
offers:
  - {name: a, device: l4, price_usd_per_hour: 1, max_count: 3}
  - {name: b, device: h100_sxm, price_usd_per_hour: 4, max_count: 5}
demand: [{model: m, input_tokens: 100, output_tokens: 100, rate_per_s: 10}]
profiles:
  - {offer: a, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 2}
  - {offer: b, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 6}
"""
WORKERS = "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s,tp\nw,both,h100_sxm,8,5,0.5,0.02,8\n"
PARALLEL = """problem: parallel
name: one node
model: Qwen/Qwen3-32B
backend: vllm
cluster: {nodes: [{device: h100_sxm, count: 1}]}
workload: {input_tokens: 100, output_tokens: 100}
candidates: workers.csv
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    label = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"}
    node = {"metadata": {"name": "a", "labels": label}, "status": {"allocatable": amounts}}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}}
    run = {
        "model_id": "Qwen/Qwen3-32B", "max_concurrency": 16, "completed": 100, "total_input_tokens": 102400,
        "total_output_tokens": 25600, "mean_ttft_ms": 250.0, "mean_tpot_ms": 25.0,
    }  # fmt: skip
    stats = {"record_type": "eplb_load_stats", "version": 1, "expert_load": [[4, 1]], "p2l_map": [[0, 1]]}
    files = {
        "nodes.json": {"kind": "NodeList", "items": [node]},
        "pods.json": {"kind": "PodList", "items": [pod]},
        "bench.json": run,
        "recorded.json": {"logical_count": [[3, 4]]},
        "stats.jsonl": stats,
        "stats/meta_info.json": {"num_experts": 2},
        "tiny/config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100, "torch_dtype": "bfloat16",
        },
        "openb_nodes.csv": "sn,cpu_milli,memory_mib,gpu,model\none,64000,262144,2,T4\n",
        "openb_pods.csv": "name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos\np,1000,1024,1,500,LS\n",
        "topo.txt": "\tGPU0\tGPU1\nGPU0\tX\tNV12\nGPU1\tNV12\tX\n",
        "requests.csv": "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i},100,50\n" for i in range(100)),
        "prices.csv": "gpu,gpus_per_instance,usd_per_hour,gpu_mem_gib\nh100,8,55,80\n",
        "fleet.yaml": FLEET, "parallel.yaml": PARALLEL, "workers.csv": WORKERS,
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    header = json.dumps({"0_1": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "stats" / "rank0.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\3\0\0\0\4\0\0\0"
    )
    return tmp_path


def test_the_commands_run(folder: Path) -> None:
    plans = ["plan fleet.yaml -o fleet.json --quiet --threads 1", "plan parallel.yaml -o serving.json --quiet"]
    lines = re.sub(r"\\\n *", "", PAGE)
    shown = re.findall(r"^    gpuplan (.*?)(?:  +#.*)?$", lines, flags=re.MULTILINE)
    assert len(shown) == 23
    for command in [*plans, *shown]:
        result = CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, (command, result.output)


def test_every_format_is_on_the_page() -> None:
    assert [name for name in WRITERS if f"`{name}`" not in PAGE] == []
