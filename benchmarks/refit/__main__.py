"""Fit one topic's operator tables and print the errors; with --write, rewrite its file of the catalogue."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.common import data_folder

#: Module of each topic; its `main(data, write)` fits, prints, and writes if asked.
TOPICS = {
    "gemm": "benchmarks.refit.gemm",
    "attention": "benchmarks.refit.attention",
    "moe": "benchmarks.refit.moe",
    "collectives": "benchmarks.refit.collectives",
    "serving": "benchmarks.refit.serving",
    "training": "benchmarks.refit.training",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refit", description=__doc__)
    parser.add_argument("topic", choices=sorted(TOPICS))
    parser.add_argument("--write", action="store_true", help="rewrite planner/catalog/calibration/TOPIC.json")
    options = parser.parse_args()
    importlib.import_module(TOPICS[options.topic]).main(data_folder("inference"), write=options.write)
