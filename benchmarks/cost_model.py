"""The cost model against measurements: `python -m benchmarks.cost_model [--short] [--json] [--case NAME]`.

Every accuracy is held out by configuration (a model family, a device, a matrix shape), never by row; published figures
were never fitted on. Speed is of one thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from benchmarks import cost_model_facts as facts
from benchmarks import cost_model_serving as serving
from benchmarks import cost_model_training, queueing
from benchmarks.common import Row, main
from benchmarks.cost_model_operators import operators
from benchmarks.cost_model_published import published
from benchmarks.cost_model_speed import speed


def training(short: bool) -> Iterator[Row]:
    """Training step time and memory, all but their speed."""
    for name, case in cost_model_training.CASES.items():
        if name != "speed":
            yield from case(short)


CASES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "models": facts.models,
    "memory": facts.memory,
    "tpot": serving.tpot,
    "ttft": serving.ttft,
    "calibration": serving.calibration,
    "intervals": serving.intervals,
    "choices": serving.choices,
    "residuals": serving.residuals,
    "published": published,
    "operators": operators,
    "queueing": queueing.rows,
    "training": training,
    "speed": speed,
}

if __name__ == "__main__":
    main("cost_model", CASES)
