"""Throughput from the cost model: pools, sizes, regions, formats, files; and mistakes where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_cases import best, counts, run

from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.planning import load_problem
from planner import catalog
from planner.descriptions.fleet import FleetInstance
from planner.errors import DescriptionError

SLO = {"ttft_s": 2, "tpot_s": 0.05, "percentile": 90}
EIGHT = "meta-llama/Llama-3.1-8B-Instruct"
SEVENTY = "meta-llama/Llama-3.1-70B-Instruct"
#: What `config.json` of a small model says.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def described(
    found: Mapping[str, Mapping[str, Any]], models: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    models = models or [{"name": "m", "model": EIGHT}]
    sizes = [(250, 250), (2000, 500), (8000, 100)]
    return {
        "problem": "fleet",
        "name": "computed",
        "slo": SLO,
        "offers": [{"name": name, "price_usd_per_hour": 1.0, **row} for name, row in found.items()],
        "models": models,
        "demand": [
            {"model": model["name"], "input_tokens": i, "output_tokens": o, "rate_per_s": 1.0}
            for model in models
            for i, o in sizes
        ],
        **more,
    }


def made(*arguments: Any, **more: Any) -> FleetProblem:
    return read_problem(FleetInstance(**described(*arguments, **more)))


def rates(instance: FleetProblem) -> dict[tuple[int, int], np.ndarray]:
    """Throughput by (pool, GPUs) of an instance of one model."""
    pairs = zip(instance.config_pool.tolist(), instance.config_gpus.tolist(), strict=True)
    return {pair: instance.throughput[:, c] for c, pair in enumerate(pairs)}


NODE = {"node": {"device": "h100_sxm", "gpus": 8}}


def test_a_node_holds_replicas_of_every_size() -> None:
    found = rates(made(NODE))
    assert sorted(found) == [(0, 1), (0, 2), (0, 4), (0, 8)]
    # More GPUs serve more, but not in proportion: a replica of two is less than two of one for a model that fits.
    for few, many in ((1, 2), (2, 4), (4, 8)):
        assert (found[0, many] > found[0, few]).all()


def test_a_model_that_does_not_fit_has_no_replica() -> None:
    """141 GB of weights: not on one GPU of 80 GB, and on two with hardly a cache."""
    instance = made(NODE, [{"name": "m", "model": SEVENTY}])
    assert 1 not in instance.config_gpus
    assert 8 in instance.config_gpus
    nothing = made({"small": {"device": "l4"}}, [{"name": "m", "model": SEVENTY}])
    assert nothing.num_configs == 0
    outcome = run(nothing)
    assert outcome.status == "infeasible"
    assert outcome.reasons[0] == "no offer serves m 250/250 tokens within the SLO"


def test_a_looser_limit_serves_more() -> None:
    strict = made(NODE, slo={"ttft_s": 1, "tpot_s": 0.02, "percentile": 99})
    loose = made(NODE, slo={"ttft_s": 4, "tpot_s": 0.2, "percentile": 50})
    for pair, found in rates(strict).items():
        assert (rates(loose)[pair] >= found).all(), pair


def test_the_limit_of_a_model_goes_before_that_of_the_instance() -> None:
    own = {"name": "m", "model": EIGHT, "slo": {"ttft_s": 4, "tpot_s": 0.2}}
    alone = made(NODE, [own])
    general = made(NODE, slo=own["slo"])
    np.testing.assert_array_equal(alone.throughput, general.throughput)


def test_the_asked_sizes_only() -> None:
    assert made(NODE, [{"name": "m", "model": EIGHT, "gpus_per_replica": [2, 4, 2]}]).config_gpus.tolist() == [2, 4]
    small = {"half": {"device": "h100_sxm", "gpus": 2}}
    assert made(small, [{"name": "m", "model": EIGHT}]).config_gpus.tolist() == [1, 2]


def test_instances_of_one_gpu_kind_are_one_pool() -> None:
    """Also under another of its names; another region, market or availability is another pool."""
    instance = made(
        {
            "one": {"device": "h100_sxm"},
            "eight": {"device": "H100 SXM", "gpus": 8},
            "elsewhere": {"device": "h100_sxm", "region": "eu"},
            "spot": {"device": "h100_sxm", "market": "spot"},
            "rare": {"device": "h100_sxm", "market": "spot", "availability": 0.5},
        }
    )
    assert instance.pool_of_offer.tolist() == [0, 0, 1, 2, 3]
    assert instance.availability.tolist() == [1, 1, 1, 0.5]
    assert instance.spot.tolist() == [False, False, True, True]


def test_a_region_that_a_model_may_not_run_in() -> None:
    found = {"us": {"device": "h100_sxm", "region": "us"}, "eu": {"device": "h100_sxm", "region": "eu"}}
    instance = made(found, [{"name": "m", "model": EIGHT, "regions": ["eu"]}])
    assert set(instance.config_pool.tolist()) == {1}
    plan = run(instance).plan
    assert plan is not None
    assert set(counts(plan)) == {"eu"}


def test_narrower_weights_serve_more_where_memory_is_short() -> None:
    found, slo = {"small": {"device": "l4"}}, {"ttft_s": 10, "tpot_s": 0.2}
    wide, narrow = (
        rates(made(found, [{"name": "m", "model": EIGHT, **precision}], slo=slo))[0, 1]
        for precision in ({}, {"precision": "fp8"})
    )
    assert (narrow > wide).all()


def test_the_shared_pool_is_packed_by_shape() -> None:
    """The same GPU as 1 for $4 and as 8 for $20: little demand takes the small shape, much the large one."""
    found = {
        "one": {"device": "h100_sxm", "price_usd_per_hour": 4},
        "eight": {**NODE["node"], "price_usd_per_hour": 20},
    }
    little = made(found)
    plan = run(little).plan
    assert plan is not None
    assert counts(plan) == {"one": 1}
    much = FleetInstance(**described(found))
    rows = [row.model_copy(update={"rate_per_s": 40.0}) for row in much.demand]
    plan = run(read_problem(much.model_copy(update={"demand": tuple(rows)})), "scip").plan
    assert plan is not None
    assert counts(plan)["eight"] >= 1


def test_roles_from_the_cost_model_never_cost_more() -> None:
    """Prefill on one GPU kind, decode on another, or whole replicas: whichever is cheapest, and all stages are done."""
    found = {
        "h100": {"device": "h100_sxm", "price_usd_per_hour": 4.0},
        "l40s": {"device": "l40s", "price_usd_per_hour": 0.9, "network_bytes_per_s": 5e9},
    }
    slo = {"ttft_s": 2, "tpot_s": 0.08, "percentile": 90}
    served = {"name": "m", "model": EIGHT}
    whole = made(found, [served], slo=slo)
    split = made(found, [{**served, "roles": ["both", "prefill", "decode"]}], slo=slo)
    assert sorted(set(split.config_role.tolist())) == [0, 1, 2]
    # 32 layers x 2 x 8 heads x 128 x 2 bytes a token.
    np.testing.assert_array_equal(split.handed_bytes[0], 131072 * split.input_tokens)
    rates = whole.rate * 8
    assert best(replace(split, rate=rates)) <= best(replace(whole, rate=rates)) + 1e-6
    assert any("prefill apart" in text for text in split.assumptions)


def test_roles_that_say_nothing_are_told() -> None:
    with pytest.raises(ValueError, match="prefill and decode need one another"):
        made(NODE, [{"name": "m", "model": EIGHT, "roles": ["both", "prefill"]}])
    given = {"offer": "node", "model": "m", "input_tokens": 250, "output_tokens": 250, "max_rate_per_s": 1}
    with pytest.raises(ValueError, match="profiles say their roles"):
        made(NODE, [{"name": "m", "model": EIGHT, "roles": ["prefill", "decode"]}], profiles=[given])


def written(folder: Path, value: Mapping[str, Any]) -> Path:
    path = folder / "fleet.json"
    path.write_text(json.dumps(value, indent=1))
    return path


def test_a_config_beside_the_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the instance's folder, whatever the working folder; its contents are in the hash."""
    (tmp_path / "mine").mkdir()
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps(CONFIG))
    path = written(tmp_path, described(NODE, [{"name": "m", "model": "mine/config.json"}]))
    monkeypatch.chdir("/")
    first = load_problem(path)
    assert best(first) > 0
    config.write_text(json.dumps({**CONFIG, "num_hidden_layers": 12}))
    second = load_problem(path)
    assert second.sha256 != first.sha256
    assert (second.throughput >= first.throughput).all()


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a model that nobody knows": (
        described(NODE, [{"name": "m", "model": "no/such-model"}]),
        ["models.0.model", "no/such-model"],
    ),
    "a device that nobody knows": (described({"x": {"device": "h1000"}}), ["offers.0.device", "h1000"]),
    "a config that is not there": (
        described(NODE, [{"name": "m", "model": "missing/config.json"}]),
        ["models.0.model", "cannot be read"],
    ),
    "a format that nobody knows": (
        described(NODE, [{"name": "m", "model": EIGHT}, {"name": "n", "model": EIGHT, "precision": "fp3"}]),
        ["models.1.precision", "unknown precision 'fp3'", "fp8"],
    ),
    "sizes that do not divide": (
        described(NODE, [{"name": "m", "model": "microsoft/phi-4", "gpus_per_replica": [2, 5]}]),
        ["models.0.gpus_per_replica", "replicas of 2 and 5 GPUs on one offer"],
    ),
    "sizes of two models that do not divide": (
        described(
            NODE,
            [
                {"name": "m", "model": EIGHT, "gpus_per_replica": [2]},
                {"name": "n", "model": "microsoft/phi-4", "gpus_per_replica": [5]},
            ],
        ),
        ["models.1.gpus_per_replica", "replicas of 2 and 5 GPUs on one offer"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_located(tmp_path: Path, name: str) -> None:
    value, words = MISTAKES[name]
    with pytest.raises(DescriptionError) as caught:
        load_problem(written(tmp_path, value))
    (finding,) = caught.value.findings
    assert finding.line is not None
    assert finding.column is not None
    for word in words:
        assert word in str(finding)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    value = described(
        {"x": {"device": "h1000"}, "y": {"device": "h2000"}},
        [{"name": "m", "model": "no/one"}, {"name": "n", "model": "no/two"}],
    )
    with pytest.raises(DescriptionError) as caught:
        load_problem(written(tmp_path, value))
    assert [finding.line for finding in caught.value.findings] == sorted(
        finding.line or 0 for finding in caught.value.findings
    )
    assert len(caught.value.findings) >= 2


def test_the_catalogue_has_the_models_that_are_used_here() -> None:
    assert {EIGHT, SEVENTY, "microsoft/phi-4"} <= set(catalog.model_names())
