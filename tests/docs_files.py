"""Small files under the names that pages of the documentation use for their reader's own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from typer.testing import CliRunner

from cli.app import app

ROOT = Path(__file__).resolve().parents[1]
#: Folders of the repository that a page has under a name of its own.
FOLDERS = {"deploy.md": {"instances/deploy/cluster": "cluster"}, "tutorial.md": {"docs/tutorial": "."}}
RNG = np.random.default_rng(0)
TRACE = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i * 0.4},{100 + i},{50 + i}\n" for i in range(600))
PRICES = (
    "provider,region,instance_type,gpu,gpus_per_instance,usd_per_hour,gpu_mem_gib\n"
    "aws,us-east-1,p5.48xlarge,h100,8,55.04,80\naws,us-east-1,g6e.xlarge,l40s,1,1.861,48\n"
    "aws,us-east-1,odd,unknown-gpu,1,1,1\n"
)
RUNS = (
    "model,system,backend,tp,isl,osl,concurrency,ttft_ms,tpot_ms\n"
    "Qwen/Qwen3-32B,h100_sxm,vllm,2,1024,512,64,400,28\nQwen/Qwen3-32B,h100_sxm,vllm,4,1024,512,16,150,13\n"
)
FLEET = """problem: fleet
name: two offers
models: [{name: m}]
slo: {ttft_s: 2}
offers:
  - {name: a, device: l4, price_usd_per_hour: 1, max_count: 3}
  - {name: b, device: h100_sxm, price_usd_per_hour: 4, max_count: 5}
demand: [{model: m, input_tokens: 100, output_tokens: 100, rate_per_s: 10}]
profiles:
  - {offer: a, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 2}
  - {offer: b, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 6}
"""
PARALLEL = """problem: parallel
name: one node
model: Qwen/Qwen3-32B
backend: vllm
cluster: {nodes: [{device: h100_sxm, count: 1}]}
workload: {input_tokens: 100, output_tokens: 100}
candidates: workers.csv
"""
WORKERS = "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s,tp\nw,both,h100_sxm,8,5,0.5,0.02,8\n"
PODS = """problem: pods
name: two nodes
nodes: [{name: gpu, count: 2, cpu: 16, memory: 64Gi, gpus: 2}]
pods:
  - {name: runs, cpu: 4, memory: 8Gi, gpus: 1, node: gpu-0}
  - {name: runs-too, cpu: 4, memory: 8Gi, gpus: 1, node: gpu-1}
  - {name: train, cpu: 4, memory: 8Gi, gpus: 2, priority: 10}
"""
DEPLOY = """problem: deploy
name: half-used-cluster
nodes: cluster/nodes.json
pods: cluster/pods.json
services:
  - name: chat
    model: meta-llama/Llama-3.3-70B-Instruct
    precision: fp8
    demand: [{input_tokens: 1000, output_tokens: 300, rate_per_s: 10}]
offers: [{name: p5.4xlarge, device: h100_sxm, gpus: 1, price_usd_per_hour: 6.88}]
"""


def write_files(page: str, folder: Path) -> None:
    """The files of a page into a folder: text as it is, anything else as JSON, a function writes by itself."""
    for source, target in FOLDERS.get(page, {}).items():
        shutil.copytree(ROOT / source, folder / target, dirs_exist_ok=True)
    for name, content in FILES.get(page, dict)().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def node(name: str) -> dict[str, Any]:
    """A node of eight H100 as kubectl prints it, with the keys that matter."""
    label = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"}
    return {"metadata": {"name": name, "labels": label}, "status": {"allocatable": amounts}}


def pod(name: str, **keys: Any) -> dict[str, Any]:
    """A pod that asks for one GPU."""
    asked = {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    return {"metadata": {"name": name}, "spec": {"containers": [{"resources": asked}], **keys}}


def loads() -> dict[str, Any]:
    """Two recordings of two layers of 256 experts."""
    return {
        f"{name}.json": {"logical_count": RNG.zipf(1.7, (2, 256)).clip(max=50).tolist()} for name in ("chat", "code")
    }


def formats() -> dict[str, Any]:
    """One of everything that can be imported, and a plan to export of each kind that the page exports."""
    header = json.dumps({"0_1": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return {
        "nodes.json": {"kind": "NodeList", "items": [node("a")]},
        "pods.json": {"kind": "PodList", "items": [pod("p")]},
        "bench.json": {
            "model_id": "Qwen/Qwen3-32B", "max_concurrency": 16, "completed": 100, "total_input_tokens": 102400,
            "total_output_tokens": 25600, "mean_ttft_ms": 250.0, "mean_tpot_ms": 25.0,
        },
        "recorded.json": {"logical_count": [[3, 4]]},
        "stats.jsonl": {"record_type": "eplb_load_stats", "version": 1, "expert_load": [[4, 1]], "p2l_map": [[0, 1]]},
        "stats/meta_info.json": {"num_experts": 2},
        "stats/rank0.safetensors": len(header).to_bytes(8, "little") + header + b"\3\0\0\0\4\0\0\0",
        "tiny/config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100, "torch_dtype": "bfloat16",
        },
        "openb_nodes.csv": "sn,cpu_milli,memory_mib,gpu,model\none,64000,262144,2,T4\n",
        "openb_pods.csv": "name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos\np,1000,1024,1,500,LS\n",
        "topo.txt": "\tGPU0\tGPU1\nGPU0\tX\tNV12\nGPU1\tNV12\tX\n",
        "requests.csv": TRACE, "prices.csv": PRICES.replace("aws,us-east-1,odd,unknown-gpu,1,1,1\n", ""),
        "fleet.yaml": FLEET, "parallel.yaml": PARALLEL, "workers.csv": WORKERS,
    }  # fmt: skip


def filled_in() -> bytes:
    """A workbook of the fleet with two mistakes in it."""
    with tempfile.TemporaryDirectory() as folder:
        instance, book = Path(folder, "fleet.yaml"), Path(folder, "fleet.xlsx")
        instance.write_text(FLEET)
        made = CliRunner().invoke(app, ["workbook", str(instance), "--blank", "-o", str(book)])
        assert made.exit_code == 0, made.output
        sheets = openpyxl.load_workbook(book)
        sheets["Inputs"]["B13"] = "lots"
        sheets["Demand"]["B6"] = -100
        sheets.save(book)
        return book.read_bytes()


#: What makes the files of each page.
FILES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "batch.md": lambda: {
        "night/one.yaml": FLEET, "fleet.yaml": FLEET, "chat.yaml": FLEET, "east/one.yaml": FLEET,
        "jobs.yaml": "jobs:\n  - instance: fleet.yaml\n",
    },
    "cost_model.md": lambda: {"runs.csv": RUNS},
    "deploy.md": lambda: {"new_demand.yaml": DEPLOY},
    "experts.md": loads,
    "fleet.md": lambda: {"gpu_prices.csv": PRICES, "requests.csv": TRACE, "counts.yaml": "g6e.xlarge: 2\n"},
    "formats.md": formats,
    "parallel.md": lambda: {"workers.csv": WORKERS},
    "pods.md": lambda: {
        "nodes.json": {"kind": "NodeList", "items": [node("a"), node("b")]},
        "pods.json": {"kind": "PodList", "items": [pod("train-0"), pod("runs", nodeName="a")]},
        "budgets.yaml": "apiVersion: v1\nkind: List\nitems: []\n",
    },
    "report.md": lambda: {"fleet.yaml": FLEET},
    "workbook.md": lambda: {"fleet.yaml": FLEET, "filled_in.xlsx": filled_in()},
    "traces.md": lambda: {"gpu_prices.csv": PRICES, "requests.csv": TRACE},
}  # fmt: skip
