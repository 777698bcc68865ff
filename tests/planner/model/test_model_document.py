"""What `gpuplan catalog models` prints: the JSON contract and the tables."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from cli.models import billions, document, listing, print_listing, print_model, show
from planner.catalog import model, model_names

CONTRACT = {
    *("total_params", "active_params", "active_rule", "weight_bytes", "kv_bytes_per_token"),
    *("state_bytes_per_sequence", "layers", "assumptions", "components"),
}


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss-20b", "qwen3-next-80b-a3b", "nemotron-3-nano-30b-a3b"])
def test_contract(name: str) -> None:
    spec = model(name)
    found = document(spec)
    assert set(found) >= CONTRACT
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert sum(found["components"].values()) == found["total_params"]
    assert sum(found["weight_bytes_by_format"].values()) == found["weight_bytes"]
    assert len(found["layers"]) == spec.num_hidden_layers
    assert sum(layer["params"] for layer in found["layers"]) < found["total_params"]
    assert sum(layer["kv_bytes_per_token"] for layer in found["layers"]) == found["kv_bytes_per_token"]
    assert sum(layer["state_bytes_per_sequence"] for layer in found["layers"]) == found["state_bytes_per_sequence"]


def test_known_figures() -> None:
    found = document(model("deepseek-ai/DeepSeek-V3"))
    assert found["total_params"] == 671_026_404_352
    assert found["kv_bytes_per_token"] == 70_272
    assert isinstance(found["kv_bytes_per_token"], int)


def printed(write: Any, *args: Any) -> str:
    stream = io.StringIO()
    write(Console(file=stream, width=200, markup=False, highlight=False), *args)
    return stream.getvalue()


def test_tables() -> None:
    text = printed(print_model, model("gpt-oss-120b"))
    for part in ("116.8 B parameters, 5.712 B active", "sliding window 128", "4 of 128 experts", "131,072"):
        assert part in text
    assert "mtp, apart" in printed(print_model, model("deepseek-v3"))
    text = printed(print_listing)
    assert all(name in text for name in model_names())


def test_listing_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["name"] for row in listing()] == list(model_names())
    assert all(row["source"] for row in listing())
    show(None, as_json=True)
    assert len(json.loads(capsys.readouterr().out)) == len(model_names())
    show("llama-3.1-8b", as_json=True)
    assert json.loads(capsys.readouterr().out)["total_params"] == 8_030_261_248
    show("llama-3.1-8b", as_json=False)
    assert "8.03 B parameters" in capsys.readouterr().out


def test_billions() -> None:
    assert [billions(count) for count in (671_026_404_352, 596_049_920, 1_234_567)] == ["671 B", "0.596 B", "1.23 M"]
