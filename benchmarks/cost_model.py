"""The cost model against measurements: `python -m benchmarks.cost_model [--short] [--json] [--case NAME]`.

Every accuracy is held out by configuration (a model family, a device, a matrix shape), never by row.
"""

from __future__ import annotations

from benchmarks import cost_model_serving as serving
from benchmarks.common import main

CASES = {
    "tpot": serving.tpot,
    "ttft": serving.ttft,
    "calibration": serving.calibration,
    "intervals": serving.intervals,
    "choices": serving.choices,
    "residuals": serving.residuals,
}

if __name__ == "__main__":
    main("cost_model", CASES)
