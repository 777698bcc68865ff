"""Drafts of several tokens against measured runs: TensorRT-LLM runs of DeepSeek that used MTP without saying so.

How many drafts they had is not known, nor how many were right. So only the size of the effect can be held against
them: the measured time per token over our prediction without drafts, of the marked runs over the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.common import Row
from benchmarks.silicon import silicon, unmarked
from formulations.parallelism.splits import PUBLISHED_ACCEPTANCE
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.predict import ServingModel, ServingPlans


def drafts(short: bool) -> Iterator[Row]:
    """Median TPOT with drafts over that without, measured and predicted for 1 to 3 drafts."""
    data = silicon()
    chosen = data.clean & (data.family == "DeepSeek") & (data.cells["backend"] == "trtllm")
    plain = unmarked(data.runs).model.with_coefficients(fitted())
    ratio = data.runs.tpot_s / plain.predict(data.runs.plans).tpot_s
    marked, others = chosen & data.speculative, chosen & ~data.speculative
    measured = float(np.median(ratio[marked]) / np.median(ratio[others]))
    index = np.flatnonzero(marked)
    plans = data.runs.plans.take(index)
    used, place = np.unique(plans.worker, return_inverse=True)
    own = ServingPlans(place.astype(np.intp), plans.concurrency, plans.input_tokens, plans.output_tokens)
    base = plain.only(used.tolist())
    (acceptance,) = PUBLISHED_ACCEPTANCE.values()
    for number in (1, 2, 3)[:: 2 if short else 1]:
        workers = [replace(worker, draft_tokens=number, draft_acceptance=acceptance) for worker in base.workers]
        faster = ServingModel(workers, fitted()).predict(own).tpot_s / base.predict(own).tpot_s
        why = f"measured, {index.size} runs with an unknown number against {int(others.sum())} without"
        case = f"DeepSeek on TensorRT-LLM, {number} drafts at {acceptance:.0%}"
        yield Row(
            case, "TPOT over that without drafts, median", float(np.median(faster)), measured, why, "ratio", "lower"
        )
