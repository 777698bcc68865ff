"""What a first workbook holds: a small fleet to write over, for those who have no instance file to begin with."""

from __future__ import annotations

from pathlib import Path

from planner.files import SourceText
from planner.writers.fragments import to_yaml

#: Prices are examples: list prices of AWS us-east-1 on 2026-07-20. Source: aws/karpenter-provider-aws.
STARTER = {
    "problem": "fleet",
    "name": "my fleet",
    "models": [{"name": "chat", "model": "Qwen/Qwen3-8B"}],
    "slo": {"ttft_s": 2.0, "tpot_s": 0.05},
    "headroom": 0.2,
    "offers": [
        {"name": "g6e.xlarge", "device": "l40s", "price_usd_per_hour": 1.861},
        {"name": "p5.4xlarge", "device": "h100_sxm", "price_usd_per_hour": 6.88},
    ],
    "demand": [
        {"model": "chat", "input_tokens": 500, "output_tokens": 250, "rate_per_s": 20},
        {"model": "chat", "input_tokens": 4000, "output_tokens": 400, "rate_per_s": 2},
    ],
}


def starter(folder: Path) -> SourceText:
    """The fleet as an instance of a folder."""
    return SourceText("the example", to_yaml(STARTER), STARTER, folder)
