"""Write the larger instances of this folder: `python instances/fleet/generate.py`.

Prices are list prices, read off the providers' price lists as the Karpenter providers record them (Apache-2.0):
AWS us-east-1 on demand on 2026-07-20 (aws/karpenter-provider-aws), Google us-central1 on 2026-08-03
(cloudpilot-ai/karpenter-provider-gcp). Sizes of requests and the shape of the week are synthetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
#: Mélange's grid of request sizes (arXiv 2404.14527).
INPUTS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
OUTPUTS = (25, 100, 250, 500, 1000, 2000)
#: AWS instance: catalogue device, GPUs, USD/hour.
AWS = {
    "g4dn.xlarge": ("t4", 1, 0.526),
    "g5.xlarge": ("a10g", 1, 1.006),
    "g5.12xlarge": ("a10g", 4, 5.672),
    "g6.xlarge": ("l4", 1, 0.8048),
    "g6.12xlarge": ("l4", 4, 4.6016),
    "g6e.xlarge": ("l40s", 1, 1.861),
    "g6e.12xlarge": ("l40s", 4, 10.49264),
    "p4d.24xlarge": ("a100_sxm_40gb", 8, 21.957642),
    "p4de.24xlarge": ("a100_sxm", 8, 27.44705),
    "p5.4xlarge": ("h100_sxm", 1, 6.88),
    "p5.48xlarge": ("h100_sxm", 8, 55.04),
    "p5en.48xlarge": ("h200_sxm", 8, 63.296),
}
#: Google instance: catalogue device, USD/hour on demand and spot.
GOOGLE = {
    "g2-standard-4": ("l4", 0.706832, 0.397336),
    "a2-ultragpu-1g": ("a100_sxm", 5.068798, 2.759546),
    "a3-highgpu-1g": ("h100_sxm", 11.06125, 6.326193),
}
#: Assumed, as no list tells them: a year's commitment, and how much of the time a spot instance is there.
RESERVED_PRICE_SHARE, SPOT_AVAILABILITY = 0.63, 0.85


def sizes(median_in: float, median_out: float, spread: float = 1.2) -> dict[tuple[int, int], float]:
    """Shares of log-normal request sizes on the grid; what is beyond its ends counts as its ends."""

    def shares(edges: Iterable[int], median: float) -> list[float]:
        below = [0.0, *(0.5 * (1 + math.erf(math.log(edge / median) / spread / 2**0.5)) for edge in edges)]
        below[-1] = 1.0
        return [high - low for low, high in pairwise(below)]

    rows, columns = shares(INPUTS, median_in), shares(OUTPUTS, median_out)
    return {
        (i, o): row * column
        for i, row in zip(INPUTS, rows, strict=True)
        for o, column in zip(OUTPUTS, columns, strict=True)
    }


def demand(model: str, shares: Mapping[tuple[int, int], float], rate_per_s: float) -> list[str]:
    return [
        f"  - {{model: {model}, input_tokens: {i}, output_tokens: {o}, rate_per_s: {rate_per_s * share:.4g}}}"
        for (i, o), share in shares.items()
    ]


def write(name: str, lines: Iterable[str]) -> None:
    (HERE / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def aws_offers(names: Iterable[str]) -> list[str]:
    return [
        f"  - {{name: {name}, device: {AWS[name][0]}, gpus: {AWS[name][1]}, price_usd_per_hour: {AWS[name][2]}}}"
        for name in names
    ]


def chat() -> None:
    write(
        "chat_12_offers",
        [
            "# One model on Mélange's grid of sizes, and what AWS us-east-1 rents (list prices of 2026-07-20, "
            "aws/karpenter-provider-aws). Written by generate.py.",
            "problem: fleet",
            "name: chat-12-offers",
            "models: [{name: chat, model: meta-llama/Llama-3.1-8B-Instruct}]",
            "slo: {ttft_s: 5, tpot_s: 0.08, percentile: 90}",
            "headroom: 0.2",
            "offers:",
            # Single H100 are scarce: two can be had.
            *(line.replace("}", ", max_count: 2}") if "p5.4xlarge" in line else line for line in aws_offers(AWS)),
            "demand:",
            *demand("chat", sizes(400, 180), 40),
        ],
    )


def shared() -> None:
    models = {
        "small": ("meta-llama/Llama-3.2-3B-Instruct", 3.0, 600, 60),
        "chat": ("meta-llama/Llama-3.1-8B-Instruct", 4.0, 500, 200),
        "coder": ("Qwen/Qwen2.5-32B-Instruct", 0.6, 2500, 150),
        "large": ("meta-llama/Llama-3.3-70B-Instruct", 0.5, 900, 300),
    }
    coarse = {"small": (2000, 250), "chat": (2000, 500), "coder": (8000, 500), "large": (4000, 1000)}
    lines = []
    for name, (_, rate, median_in, median_out) in models.items():
        most_in, most_out = coarse[name]
        kept = {size: s for size, s in sizes(median_in, median_out).items() if size <= (most_in, most_out)}
        kept = {size: s for size, s in kept.items() if size[1] <= most_out and size[0] >= 250 and size[1] >= 100}
        lines += demand(name, {size: share / sum(kept.values()) for size, share in kept.items()}, rate)
    write(
        "shared_nodes",
        [
            "# Four models that share nodes of 8 GPUs: replicas of 1, 2, 4 or 8 GPUs, packed together. Prices of AWS",
            "# us-east-1 on 2026-07-20 (aws/karpenter-provider-aws). Written by generate.py.",
            "problem: fleet",
            "name: shared-nodes",
            "models:",
            *(f"  - {{name: {name}, model: {what[0]}, min_replicas: 2}}" for name, what in models.items()),
            "slo: {ttft_s: 5, tpot_s: 0.1, percentile: 90}",
            "headroom: 0.25",
            "offers:",
            *aws_offers(("g6e.12xlarge", "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5en.48xlarge")),
            "demand:",
            *lines,
        ],
    )


def week() -> None:
    offers = []
    for name, (device, on_demand, spot) in GOOGLE.items():
        reserved = round(RESERVED_PRICE_SHARE * on_demand, 4)
        there = f", availability: {SPOT_AVAILABILITY}"
        for market, price, more in (
            ("on_demand", on_demand, ""),
            ("reserved", reserved, ""),
            ("spot", spot, there),
        ):
            offers.append(
                f"  - {{name: {name}-{market.replace('_', '-')}, device: {device}, gpus: 1, "
                f"price_usd_per_hour: {price}, market: {market}{more}}}"
            )
    mix = {(250, 100): 0.4, (1000, 250): 0.35, (4000, 250): 0.2, (8000, 500): 0.05}

    def hourly(share: float) -> str:
        # Weekdays swing from 30 to 70 requests/s with the peak at 14:00, weekend days from 25 to 40.
        rates = []
        for hour in range(168):
            mean, swing = (50, 20) if hour < 120 else (32.5, 7.5)
            rates.append(round(share * (mean + swing * math.cos((hour % 24 - 14) * math.pi / 12)), 3))
        return ", ".join(f"{rate:g}" for rate in rates)

    write(
        "week",
        [
            "# A week of hours, on demand + reserved + spot. Prices of Google us-central1 on 2026-08-03",
            "# (cloudpilot-ai/karpenter-provider-gcp); the reserved price (0.63 of on demand) and the availability of",
            "# spot are assumed. Hours count from Monday 0:00. Written by generate.py.",
            "problem: fleet",
            "name: week",
            "models: [{name: chat, model: meta-llama/Llama-3.1-8B-Instruct}]",
            "slo: {ttft_s: 2, tpot_s: 0.08, percentile: 90}",
            "headroom: 0.2",
            "max_spot_share: 0.5",
            "offers:",
            *offers,
            "demand:",
            *(
                f"  - {{model: chat, input_tokens: {i}, output_tokens: {o}, hourly: [{hourly(share)}]}}"
                for (i, o), share in mix.items()
            ),
        ],
    )


def zones() -> None:
    mix = {(250, 100): 0.4, (1000, 250): 0.35, (4000, 250): 0.2, (8000, 500): 0.05}
    offers = []
    for zone in "abc":
        for line in aws_offers(("g6.xlarge", "g6e.xlarge", "p5.4xlarge")):
            name = line.split("name: ")[1].split(",")[0]
            offers.append(
                line.replace(f"name: {name}", f"name: {name} {zone}").replace("}", f", zone: us-east-1{zone}}}")
            )
    write(
        "zones",
        [
            "# The loss of any one of three zones is survived by re-routing, and small pools are not filled. Prices of",
            "# AWS us-east-1 on 2026-07-20 (aws/karpenter-provider-aws). Written by generate.py.",
            "problem: fleet",
            "name: zones",
            "models: [{name: chat, model: meta-llama/Llama-3.1-8B-Instruct}]",
            "slo: {ttft_s: 2, tpot_s: 0.08, percentile: 90}",
            "spare_zones: 1",
            "pool_slack: {window_s: 10, quantile: 0.95}",
            "offers:",
            *offers,
            "demand:",
            *demand("chat", mix, 40),
        ],
    )


def day() -> None:
    mix = {(250, 100): 0.4, (1000, 250): 0.35, (4000, 250): 0.25}

    def hourly(share: float) -> str:
        # From 30 to 70 requests/s, the peak at 14:00.
        rates = [share * (50 + 20 * math.cos((hour - 14) * math.pi / 12)) for hour in range(24)]
        return ", ".join(f"{round(rate, 3):g}" for rate in rates)

    write(
        "day",
        [
            "# A day that repeats: an instance pays 20 minutes of itself when it starts, and at most three start in an",
            "# hour. Prices of Google us-central1 on 2026-08-03 (cloudpilot-ai/karpenter-provider-gcp); the reserved",
            "# price (0.63 of on demand) and the start are assumed. Written by generate.py.",
            "problem: fleet",
            "name: day",
            "models: [{name: chat, model: meta-llama/Llama-3.1-8B-Instruct}]",
            "slo: {ttft_s: 2, tpot_s: 0.08, percentile: 90}",
            "headroom: 0.2",
            "cyclic: true",
            "max_starts: 3",
            "offers:",
            *(
                f"  - {{name: {name}, device: {device}, price_usd_per_hour: {price}, start_cost_usd: {price / 3:.4g}}}"
                for name, (device, price, _) in GOOGLE.items()
            ),
            *(
                f"  - {{name: {name}-reserved, device: {device}, market: reserved, "
                f"price_usd_per_hour: {RESERVED_PRICE_SHARE * price:.4f}}}"
                for name, (device, price, _) in GOOGLE.items()
            ),
            "demand:",
            *(
                f"  - {{model: chat, input_tokens: {i}, output_tokens: {o}, hourly: [{hourly(share)}]}}"
                for (i, o), share in mix.items()
            ),
        ],
    )


def main() -> None:
    chat()
    shared()
    week()
    zones()
    day()


if __name__ == "__main__":
    main()
