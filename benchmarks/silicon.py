"""The measured serving runs, with what makes some of them doubtful, and held-out predictions of them.

Exclusions (the reference's traps): copies are one run logged twice; `slow` runs spend most of a request in a queue that
the configuration does not explain; `odd` ones contradict themselves. `clean` is what is left. Two image families run
multi-token prediction without saying so; those rows are marked speculative, as a user's table would.
"""

from __future__ import annotations

import csv
import gzip
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import data_folder
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.fit import Runs, fit, prior_coefficients
from planner.cost.serving.predict import ServingModel
from planner.readers.serving_rows import read_serving_rows

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: What must be held out together: R1 and V3 are one architecture.
FAMILIES = {
    "meta-llama/Llama-3.1-70B": "Llama-70B",
    "Qwen/Qwen3-32B": "Qwen3-32B",
    "openai/gpt-oss-120b": "gpt-oss",
    "deepseek-ai/DeepSeek-R1": "DeepSeek",
    "deepseek-ai/DeepSeek-V3": "DeepSeek",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen3-235B",
    "Qwen/Qwen3.5-397B-A17B": "Qwen3.5",
    "moonshotai/Kimi-K2.5": "Kimi-K2.5",
}


@dataclass(frozen=True, slots=True, eq=False)
class Silicon:
    """Measured aggregated runs; every field is [runs].

    cells : columns of the table by name, as text. clean : distinct and without contradictions. group : runs that
    differ in concurrency and parallelism only.
    """

    runs: Runs
    cells: Mapping[str, npt.NDArray[np.str_]]
    family: npt.NDArray[np.str_]
    device: npt.NDArray[np.str_]
    clean: BoolArray
    dense: BoolArray
    speculative: BoolArray
    group: tuple[tuple[str, ...], ...]


@cache
def silicon() -> Silicon:
    """Read and compile the runs, all of them."""
    folder = data_folder("inference")
    rows = _rows(folder)
    marks = [_marks(row) for row in rows]
    speculative = np.array([mark["speculative"] for mark in marks])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "runs.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "speculative"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**row, "speculative": int(flag)} for row, flag in zip(rows, speculative, strict=True))
        table = read_serving_rows(path, data_folder("models"))
    cells = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    family = np.array([FAMILIES[row["model"]] for row in rows])
    cluster = list(zip(family, cells["system"], cells["backend"], cells["precision"], strict=True))
    model = ServingModel(table.workers, prior_coefficients())
    return Silicon(
        runs=Runs(model, table.plans, table.tpot_s, table.ttft_s, cluster),
        cells=cells,
        family=family,
        device=cells["system"],
        clean=~(_copies(rows, family) | np.array([mark["slow"] or mark["odd"] for mark in marks])),
        dense=np.array([not worker.model.num_moe_layers for worker in table.workers])[table.plans.worker],
        speculative=speculative,
        group=tuple(tuple(row[name] for name in GROUP) for row in rows),
    )


#: A run group: one benchmark script, over parallelism and concurrency.
GROUP = (
    "model",
    "system",
    "backend",
    "backend_version",
    "precision",
    "gemm_quant",
    "moe_quant",
    "isl",
    "osl",
    "measured",
)


def _rows(folder: Path) -> list[dict[str, str]]:
    with gzip.open(folder / "silicon_e2e_full.csv.gz", "rt", encoding="utf-8", newline="") as file:
        dates = {row["id"]: row["measured"] for row in csv.DictReader(file)}
    with (folder / "silicon_e2e_agg_clean.csv").open(encoding="utf-8", newline="") as file:
        return [row | {"measured": dates[row["id"]]} for row in csv.DictReader(file)]


def _marks(row: Mapping[str, str]) -> dict[str, bool]:
    version, date, family = row["backend_version"], row["measured"], FAMILIES[row["model"]]
    hidden_mtp = family == "DeepSeek" and row["backend"] == "trtllm"
    hidden_mtp &= version == "1.2.0rc6.post3" or (version == "1.1.0rc2.post2" and date == "2026-01-14")
    suspected = family == "Qwen3.5" and (row["precision"], row["system"], row["tp"], row["moe_ep"]) == (
        "fp8", "b200_sxm", "4", "1",
    )  # fmt: skip
    misfit = row["model"] == "Qwen/Qwen3-235B-A22B-FP8" and (row["system"], row["backend"]) == ("h200_sxm", "vllm")
    return {
        "speculative": hidden_mtp or suspected,
        "slow": float(row["ttft_ms"]) / (float(row["tpot_ms"]) * int(row["osl"])) > 0.5,
        "odd": misfit or (date in ("2026-01-23", "2026-01-25") and row["isl"] == "4000"),
    }


def _copies(rows: list[dict[str, str]], family: npt.NDArray[np.str_]) -> BoolArray:
    """Runs that repeat an earlier one's configuration and time per token to 0.01 ms."""
    names = ("system", "backend", "precision", "isl", "osl", "tp", "attention_dp", "moe_tp", "moe_ep", "concurrency")
    seen: set[tuple[object, ...]] = set()
    found = []
    for row, one in zip(rows, family, strict=True):
        key = (one, *(row[name] for name in names), round(float(row["tpot_ms"]), 2))
        found.append(key in seen)
        seen.add(key)
    return np.array(found)


def left_out(keys: npt.NDArray[np.str_]) -> Iterator[tuple[str, BoolArray, Coefficients]]:
    """For each key: its runs, and coefficients fitted on the clean runs of all other keys."""
    data = silicon()
    for key in sorted(set(keys.tolist())):
        test = keys == key
        yield key, test, fit(data.runs, ~test & data.clean)


def held_out(by: str, mark: Callable[[Runs], Runs] = lambda runs: runs) -> tuple[FloatArray, FloatArray]:
    """TPOT and TTFT of every run, predicted without its family or its device, seconds, [runs]."""
    data = silicon()
    keys = data.family if by == "family" else data.device
    tpot, ttft = np.empty(len(keys)), np.empty(len(keys))
    for _, test, coefficients in left_out(keys):
        found = mark(data.runs).model.with_coefficients(coefficients).predict(data.runs.plans)
        tpot[test], ttft[test] = found.tpot_s[test], found.ttft_s[test]
    return tpot, ttft


def unmarked(runs: Runs) -> Runs:
    """The same runs without the speculative marks: what a table that does not know of them gets."""
    model = runs.model.only(range(len(runs.model.workers)))
    model.workers = tuple(replace(worker, speculative=False) for worker in model.workers)
    return replace(runs, model=model)
