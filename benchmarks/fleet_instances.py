"""Fleet instances with real prices, request sizes and weekly shapes, and throughput from the cost model; all seeded."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from benchmarks.common import data_folder
from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import SolveOptions
from planner.descriptions.fleet import FleetInstance

#: Sizes of Mélange's grid (tyler-griggs/melange-release): 10 inputs, 6 outputs.
INPUTS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
OUTPUTS = (25, 100, 250, 500, 1000, 2000)
DATASETS = ("sharegpt_8k", "arxiv_summarization", "mixed_80sharegpt_20arxiv", "azure2023_conv", "azure2023_code")
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
#: Single GPUs, as the price list and the catalogue name them.
GPUS = {
    "l4": "l4", "a10": "a10", "a10g": "a10g", "l40s": "l40s", "rtxpro6000": "rtx_pro_6000_server",
    "a100": "a100_40gb", "a100-80gb": "a100", "h100": "h100", "h100-nvl": "h100_nvl", "h200": "h200",
    "b200": "b200", "mi300x": "mi300x",
}  # fmt: skip
#: Node shapes of one region, by instance type: (catalogue device, GPUs).
AWS_SHAPES = {
    "g5.xlarge": ("a10g", 1), "g5.12xlarge": ("a10g", 4), "g5.48xlarge": ("a10g", 8),
    "g6.xlarge": ("l4", 1), "g6.12xlarge": ("l4", 4), "g6.48xlarge": ("l4", 8),
    "g6e.xlarge": ("l40s", 1), "g6e.12xlarge": ("l40s", 4), "g6e.48xlarge": ("l40s", 8),
    "p4d.24xlarge": ("a100_40gb", 8), "p4de.24xlarge": ("a100", 8),
    "p5.4xlarge": ("h100", 1), "p5.48xlarge": ("h100", 8), "p5en.48xlarge": ("h200", 8),
    "p6-b200.48xlarge": ("b200", 8),
}  # fmt: skip
#: Six models that a platform serves beside one another, with requests/s at scale 1 and where their sizes come from.
SIX_MODELS = (
    ("meta-llama/Llama-3.2-3B-Instruct", 1.0, "azure2023_code"),
    (LLAMA_8B, 1.0, "azure2023_conv"),
    ("Qwen/Qwen2.5-14B-Instruct", 0.5, "sharegpt_8k"),
    ("Qwen/Qwen3-32B", 0.5, "azure2023_conv"),
    ("meta-llama/Llama-3.3-70B-Instruct", 0.5, "sharegpt_8k"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", 0.5, "mixed_80sharegpt_20arxiv"),
)
#: Single GPUs of one GCP region, by instance type.
GCP_GPUS = {
    "g2-standard-4": "l4", "g4-standard-48": "rtx_pro_6000_server", "a2-highgpu-1g": "a100_40gb",
    "a2-ultragpu-1g": "a100", "a3-highgpu-1g": "h100",
}  # fmt: skip
SLO = {"ttft_s": 5.0, "tpot_s": 0.1}


def _rows(file: str) -> list[dict[str, str]]:
    with (data_folder("fleet") / file).open() as lines:
        return list(csv.DictReader(lines))


@cache
def gpu_prices() -> dict[str, float]:
    """Cheapest on-demand USD/hour of one GPU, by its name in the price list; whole GPUs of commercial regions."""
    best: dict[str, float] = {}
    for row in _rows("gpu_prices.csv"):
        commercial = row["market"] == "on_demand" and "gov" not in row["region"]
        if commercial and float(row["gpus_per_instance"]) >= 1:
            price = float(row["usd_per_gpu_hour"])
            best[row["gpu"]] = min(price, best.get(row["gpu"], price))
    return best


@cache
def aws_prices() -> dict[str, float]:
    """On-demand USD/hour of instances in us-east-1."""
    return _instances("aws", "us-east-1")


@cache
def gcp_prices() -> dict[str, float]:
    """On-demand USD/hour of instances in us-central1."""
    return _instances("gcp", "us-central1")


def _instances(provider: str, region: str) -> dict[str, float]:
    return {
        row["instance_type"]: float(row["usd_per_hour"])
        for row in _rows("gpu_prices.csv")
        if (row["provider"], row["region"], row["market"]) == (provider, region, "on_demand")
    }


@cache
def size_shares(dataset: str) -> Mapping[tuple[int, int], float]:
    """Share of the requests of each (input, output) bucket of Mélange's grid; they sum to 1."""
    found = {
        (int(row["input_le"]), int(row["output_le"])): float(row["share"])
        for row in _rows("size_hist.csv")
        if (row["grid"], row["dataset"]) == ("melange", dataset)
    }
    total = sum(found.values())
    return {size: share / total for size, share in found.items()}


def coarse(shares: Mapping[tuple[int, int], float], inputs: Sequence[int], outputs: Sequence[int]) -> dict[Any, float]:
    """Shares on a coarser grid, sizes rounded up; the last edges must be those of the finer one."""
    found: dict[tuple[int, int], float] = defaultdict(float)
    for (prompt, output), share in shares.items():
        found[min(i for i in inputs if i >= prompt), min(o for o in outputs if o >= output)] += share
    return dict(found)


def week(service: str) -> FloatArray:
    """Mean requests/s of each hour of one week of Azure 2024, `coding` or `conversation`, [168]."""
    return np.array(
        [float(row["mean_req_per_s"]) for row in _rows("azure2024_hourly_digitized.csv") if row["service"] == service]
    )


def problem(offers: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]], **more: Any) -> FleetProblem:
    """The problem of an instance; `demand` and whatever else the instance may hold are in `more`."""
    described = {"name": "benchmark", "slo": SLO, "offers": offers, "models": models, **more}
    return read_problem(FleetInstance.model_validate(described))


def demand(model: str, rate: float, shares: Mapping[tuple[int, int], float]) -> list[dict[str, Any]]:
    """Requests of one model at a rate, split by size."""
    return [
        {"model": model, "input_tokens": prompt, "output_tokens": output, "rate_per_s": rate * share}
        for (prompt, output), share in shares.items()
        if share > 0
    ]


@cache
def single_gpus(inputs: tuple[int, ...] = INPUTS, outputs: tuple[int, ...] = OUTPUTS) -> FleetProblem:
    """Llama-3.1-8B on twelve single GPUs at 1 request/s, the same of every size of a grid."""
    offers = [
        {"name": name, "device": device, "price_usd_per_hour": gpu_prices()[name]} for name, device in GPUS.items()
    ]
    even = {(prompt, output): 1 / len(inputs) / len(outputs) for prompt in inputs for output in outputs}
    return problem(offers, [{"name": "8b", "model": LLAMA_8B}], demand=demand("8b", 1.0, even))


def grid_rates(base: FleetProblem, dataset: str, rate: float) -> FloatArray:
    """Requests/s of each bucket of Mélange's grid by a dataset's sizes, as a problem's `rate` [1, D]."""
    shares = size_shares(dataset)
    sizes = zip(base.input_tokens.tolist(), base.output_tokens.tolist(), strict=True)
    return np.array([[rate * shares.get(size, 0.0) for size in sizes]])


def random_grid(seed: int, kinds: int | None = None) -> FleetProblem:
    """A random instance on Mélange's grid: some GPUs, perturbed throughput and prices, one dataset, 0.5 to 512 req/s.

    Throughput of a bucket varies by exp(N(0, 0.3)) per GPU and exp(N(0, 0.1)) per bucket; prices by 20 %.
    """
    rng = np.random.default_rng(seed)
    base = single_gpus()
    count = kinds or int(rng.integers(3, 13))
    chosen = np.sort(rng.choice(base.num_offers, count, replace=False))
    rate = grid_rates(base, DATASETS[rng.integers(len(DATASETS))], float(2 ** rng.uniform(-1, 9)))
    shape = base.throughput.shape
    noise = np.exp(rng.normal(0, 0.3, shape[1]) + rng.normal(0, 0.1, shape))
    made = only_offers(replace(base, throughput=base.throughput * noise, rate=rate), chosen)
    prices = made.price * np.exp(rng.normal(0, 0.2, count))
    # Where no chosen GPU serves a bucket within the limits, there is nothing to compare.
    served = (made.throughput > 0).any(axis=1)
    return replace(made, price=np.round(prices, 4), rate=np.where(served, made.rate, 0.0))


def only_offers(whole: FleetProblem, chosen: Sequence[int] | np.ndarray[Any, Any]) -> FleetProblem:
    """The problem with some of its offers, each of which must be a pool of its own with one configuration."""
    chosen = np.asarray(chosen)
    configs = np.array([int(np.flatnonzero(whole.config_pool == whole.pool_of_offer[k])[0]) for k in chosen])
    pools = whole.pool_of_offer[chosen]
    return replace(
        whole,
        offer_names=tuple(whole.offer_names[k] for k in chosen),
        described_offers=tuple(whole.described_offers[k] for k in chosen),
        pool_of_offer=np.arange(chosen.size),
        gpus=whole.gpus[chosen],
        price=whole.price[chosen],
        watts=whole.watts[chosen],
        least=whole.least[chosen],
        most=whole.most[chosen],
        reserved=whole.reserved[chosen],
        availability=whole.availability[pools],
        spot=whole.spot[pools],
        config_pool=np.arange(chosen.size),
        config_model=whole.config_model[configs],
        config_gpus=whole.config_gpus[configs],
        config_role=whole.config_role[configs],
        # A profiled replica has the GPUs of an instance at most: none is bound to several.
        config_offer=None,
        config_worker=tuple(whole.config_worker[c] for c in configs.tolist()),
        site_of_pool=whole.site_of_pool[pools],
        network_bytes_per_s=whole.network_bytes_per_s[pools],
        start_cost=None if whole.start_cost is None else whole.start_cost[chosen],
        throughput=whole.throughput[:, configs],
        quota_offers=whole.quota_offers[:, chosen],
    )


def six_models(
    scale: float, shapes: Sequence[str] = tuple(AWS_SHAPES), models: Sequence[int] = range(6)
) -> FleetProblem:
    """Some of the six models on some node shapes, replicas of 1, 2, 4 or 8 GPUs."""
    offers = [
        {"name": name, "device": AWS_SHAPES[name][0], "gpus": AWS_SHAPES[name][1],
         "price_usd_per_hour": aws_prices()[name]}
        for name in shapes
    ]  # fmt: skip
    chosen = [SIX_MODELS[m] for m in models]
    served = [{"name": name, "model": name} for name, _, _ in chosen]
    asked = [row for name, rate, dataset in chosen for row in demand(name, scale * rate, size_shares(dataset))]
    return problem(offers, served, demand=asked)


def weekly(service: str, scale: float, markets: Sequence[tuple[str, float]] = (), **more: Any) -> FleetProblem:
    """A week of an 8B model on single GPUs, on demand and in further markets at a share of the price.

    Spot instances are there 85 % of the time.
    """
    shape = scale * week(service)
    dataset = "azure2023_code" if service == "coding" else "azure2023_conv"
    offers = []
    for place, (market, factor) in enumerate([("on_demand", 1.0), *markets]):
        for name, device in GCP_GPUS.items():
            offer = {"name": f"{name} {market} {place}", "device": device, "market": market,
                     "price_usd_per_hour": round(factor * gcp_prices()[name], 4)}  # fmt: skip
            offers.append(offer | ({"availability": 0.85} if market == "spot" else {}))
    asked = [
        {"model": "8b", "input_tokens": prompt, "output_tokens": output, "hourly": (shape * share).tolist()}
        for (prompt, output), share in size_shares(dataset).items()
    ]
    return problem(offers, [{"name": "8b", "model": LLAMA_8B}], demand=asked, **more)


#: Shapes of the large instance: (device as the price list names it, GPUs of the node).
LARGE_SHAPES = tuple(
    (gpu, size)
    for gpu, sizes in {
        "l4": (1, 2, 4, 8), "a10g": (1, 4, 8), "l40s": (1, 4, 8), "rtxpro6000": (1, 2, 4, 8), "a100": (1, 2, 4, 8),
        "a100-80gb": (1, 2, 4, 8), "h100": (1, 2, 4, 8), "h200": (8,), "b200": (8,), "mi300x": (8,), "h100-nvl": (1,),
    }.items()
    for size in sizes
)  # fmt: skip
#: Price of a region over the cheapest one; list prices of one GPU differ about so much.
REGIONS = {"us-east": 1.0, "us-west": 1.0, "europe": 1.1, "asia": 1.17, "south-america": 1.25}


def many_models(num_models: int, seed: int = 0) -> FleetProblem:
    """Models on thirty node shapes in five regions; each model may run in two or three of them, half of it is capped.

    Models are drawn from nine of 3 to 72 billion parameters; rates are log-uniform in 0.5 .. 64 requests/s.
    """
    rng = np.random.default_rng(seed)
    names = (
        "meta-llama/Llama-3.2-3B-Instruct", LLAMA_8B, "Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b-it",
        "Qwen/Qwen2.5-14B-Instruct", "microsoft/phi-4", "Qwen/Qwen3-32B", "meta-llama/Llama-3.3-70B-Instruct",
        "Qwen/Qwen3-30B-A3B",
    )  # fmt: skip
    offers = []
    for region, factor in REGIONS.items():
        for gpu, size in LARGE_SHAPES:
            offer: dict[str, Any] = {"name": f"{gpu} x{size} {region}", "device": GPUS[gpu], "gpus": size,
                     "region": region, "price_usd_per_hour": round(factor * size * gpu_prices()[gpu], 4)}  # fmt: skip
            if rng.random() < 0.5:
                offer["max_count"] = int(rng.integers(1, 33))
            offers.append(offer)
    models, asked = [], []
    for place in range(num_models):
        regions = rng.choice(list(REGIONS), int(rng.integers(2, 4)), replace=False).tolist()
        models.append({"name": f"m{place}", "model": names[place % len(names)], "regions": regions})
        dataset = DATASETS[rng.integers(len(DATASETS))]
        shares = coarse(size_shares(dataset), (250, 1000, 4000, 16000), (250, 2000))
        asked += demand(f"m{place}", float(2 ** rng.uniform(-1, 6)), shares)
    return problem(offers, models, demand=asked)


def capped(free: FleetProblem) -> FleetProblem:
    """Every offer but the two dearest capped to a quarter of the demand that it could serve alone."""
    load = free.load(0)
    alone = np.where(np.isfinite(load), load, 0.0).sum(axis=0)
    config = [int(np.flatnonzero(free.config_pool == pool)[0]) for pool in free.pool_of_offer]
    caps = np.ceil(alone[config] / 4)
    caps[np.argsort(free.price)[-2:]] = np.inf
    return replace(free, most=caps)


def smooth_rates(base: FleetProblem, rate: float) -> FloatArray:
    """Requests/s of every bucket with log-normal sizes: medians 500 in and 150 out, sigma 1.3 and 1; [1, D]."""
    weight = np.exp(
        -((np.log(base.input_tokens / 500)) ** 2) / (2 * 1.3**2)
        - (np.log(base.output_tokens / 150)) ** 2 / (2 * 1.0**2)
    )
    weight = np.where((base.throughput > 0).any(axis=1), weight, 0.0)
    return np.asarray(rate * weight / weight.sum())[None, :]


def published_examples() -> dict[str, FleetProblem]:
    """The two toy inputs in the Mélange repository: config/example.json @ebba701 and main.py @b5e6eb5."""
    given = {
        "example.json": (30.0, ((0.2, 0.1), (0.5, 0.2)), ((2, 1), (5, 2)), ((20, 20), (40, 20))),
        "main.py": (16.0, ((0.25, 0.5), (0.25, 0.25)), ((5, 1), (10, 5)), ((20, 2), (50, 20))),
    }
    return {name: _published(*parts) for name, parts in given.items()}


def _published(rate: float, share: Any, a10g: Any, a100: Any) -> FleetProblem:
    offers = [{"name": "A10G", "device": "a10g", "price_usd_per_hour": 1.01},
              {"name": "A100", "device": "a100", "price_usd_per_hour": 3.67}]  # fmt: skip
    asked, profiles = [], []
    for i, j in np.ndindex(2, 2):
        size = {"model": "m", "input_tokens": i + 1, "output_tokens": j + 1}
        asked.append(size | {"rate_per_s": rate * share[i][j]})
        profiles += [size | {"offer": "A10G", "max_rate_per_s": a10g[i][j]},
                     size | {"offer": "A100", "max_rate_per_s": a100[i][j]}]  # fmt: skip
    return problem(offers, [{"name": "m"}], demand=asked, profiles=profiles)


def busiest(hourly: FleetProblem) -> FleetProblem:
    """The hour with the most requests, as a constant demand."""
    at = int(np.argmax(hourly.rate.sum(axis=1)))
    return replace(hourly, rate=hourly.rate[[at]], share=np.ones(1), hours=((0,),))


#: USD/hour at which the paper's single-type counts were inferred (README of the data).
PAPER_PRICES = {"L4": 0.70, "A10G": 1.01, "A100": 3.67, "H100": 7.5164}


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One rate of one figure: GPUs of each single type, and what Mélange's mix costs."""

    counts: Mapping[str, int]
    rate: float
    usd_per_hour: float

    @property
    def single_usd_per_hour(self) -> list[float]:
        return [count * PAPER_PRICES[gpu] for gpu, count in self.counts.items()]


def paper_rows() -> list[PaperRow]:
    """Rows of the digitised figures whose counts could be inferred."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _rows("melange_paper_cost_ratios.csv"):
        if row["inferred_gpu_count"] and row["inferred_melange_usd_per_hour"]:
            groups[row["dataset"], row["tpot_slo_ms"], row["rate_req_s"]].append(row)
    return [
        PaperRow(
            {row["single_gpu_type"]: int(row["inferred_gpu_count"]) for row in group},
            float(key[2]),
            float(group[0]["inferred_melange_usd_per_hour"]),
        )
        for key, group in groups.items()
    ]


def nearest_mix(usd_per_hour: float) -> float:
    """The sum of the paper's prices that is nearest to a cost: whether any mix of whole GPUs costs that at all."""
    sums = {0.0}
    for price in PAPER_PRICES.values():
        most = int(usd_per_hour // price) + 1
        sums = {round(total + n * price, 4) for total in sums for n in range(most + 1) if total <= usd_per_hour}
    return min(sums, key=lambda total: abs(total - usd_per_hour))


def fluid_cost(row: PaperRow) -> float:
    """Cheapest fleet if all requests were of one average size, at the highest throughput that the counts allow.

    n GPUs that just suffice serve at least rate / n each and fewer than rate / (n - 1): the upper end is taken, so no
    plan for one average size is cheaper. Mixing by size is what this leaves out.
    """
    offers = [
        {"name": gpu, "device": gpu, "price_usd_per_hour": price} for gpu, price in PAPER_PRICES.items()
        if gpu in row.counts
    ]  # fmt: skip
    size = {"model": "m", "input_tokens": 1, "output_tokens": 1}
    profiles = [
        size | {"offer": gpu, "max_rate_per_s": row.rate / max(count - 1, 0.5)} for gpu, count in row.counts.items()
    ]
    made = problem(offers, [{"name": "m"}], demand=[size | {"rate_per_s": row.rate}], profiles=profiles)
    objective = solve(GPU_FLEET, made, SolveOptions(time_limit_s=5.0)).objective
    assert objective is not None
    return objective.total
