"""The shipped models: sourced, consistent with what is published and with the recorded configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.catalog import model, model_names
from planner.catalog.models import entry
from planner.errors import DescriptionError, OptionError
from planner.model import ModelSpec
from planner.readers.hf_config import read_model

#: Published figures that are rounded more coarsely than to the digits they show.
COARSE = {
    "moonshotai/Kimi-K2-Instruct": 0.03,
    "zai-org/GLM-4.5-Air": 0.01,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 0.01,
}
#: Recorded configurations that go by another name in the catalogue.
RENAMED = {
    "meta-llama--Meta-Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama--Meta-Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama--Meta-Llama-3.1-405B": "llama-3.1-405b",
    "google--gemma-2-27b": "gemma-2-27b",
    "google--gemma-2-9b": "gemma-2-9b",
    "mistralai--Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "mistralai--Mixtral-8x22B-v0.1": "mixtral-8x22b",
    "Qwen--Qwen2.5-14B": "qwen2.5-14b",
    "Qwen--Qwen3-Next-80B-A3B": "qwen3-next-80b-a3b",
}


@pytest.mark.parametrize("name", model_names())
def test_entries_have_a_source_and_agree_with_what_is_published(name: str) -> None:
    facts, spec = entry(name), model(name)
    assert facts.id == spec.name == name
    assert facts.source
    assert facts.published.source
    # A GLM card counts the MTP layer in, so either total may be the published one.
    totals = (spec.total_params, spec.total_params + spec.mtp_params)
    assert min(abs(total / 1e9 / facts.published.total_b - 1) for total in totals) < COARSE.get(name, 0.0085)
    counts = (spec.active_params, spec.active_params_without_embedding)
    assert min(abs(count / 1e9 / facts.published.active_b - 1) for count in counts) < 0.2


def same(one: ModelSpec, other: ModelSpec) -> None:
    assert one.layers == other.layers
    assert one.outer == other.outer
    assert sum(tensor.parameters for tensor in one.vision) == sum(tensor.parameters for tensor in other.vision)
    assert len(one.mtp) == len(other.mtp)


def test_entries_equal_the_recorded_configurations(shared_data: Path) -> None:
    """Layer by layer and weight by weight, formats included."""
    compared = 0
    for path in sorted((shared_data / "models").glob("*.json")):
        name = RENAMED.get(path.stem, path.stem.replace("--", "/", 1))
        if path.name.endswith(".hf_quant_config.json"):
            continue
        try:
            known = model(name)
        except OptionError:
            continue
        same(known, read_model(path))
        compared += 1
    assert compared >= 30


def test_names_are_ids_aliases_and_parts_in_any_case() -> None:
    assert model("DEEPSEEK-V3") is model("deepseek-ai/DeepSeek-V3") is model("deepseek-ai/deepseek-v3-0324")
    assert model("Llama-3.1-70B-Instruct").name == "meta-llama/Llama-3.1-70B-Instruct"


def test_a_name_means_one_model() -> None:
    names = [alias.lower() for name in model_names() for alias in (name, *entry(name).aliases)]
    assert len(names) == len(set(names))


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(OptionError, match="did you mean deepseek-v3"):
        model("deepseek-v3x")
    with pytest.raises(OptionError, match="path of a config"):
        model("zzzz")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**entry("qwen3-0.6b").config, "num_hidden_layers": 2}
    path = tmp_path / "Qwen" / "Qwen3-0.6B" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config))
    assert model(path).num_hidden_layers == 2
    assert model(path.parent).num_hidden_layers == 2
    with pytest.raises(DescriptionError, match="cannot be read"):
        model(tmp_path / "missing.json")
    monkeypatch.chdir(tmp_path)
    assert model("Qwen/Qwen3-0.6B").num_hidden_layers == 2


def test_specs_are_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import planner.catalog.models as catalog

    monkeypatch.setattr(catalog, "from_mapping", lambda *_: pytest.fail("read although nothing was asked for"))
    assert len(catalog.model_names()) >= 25
