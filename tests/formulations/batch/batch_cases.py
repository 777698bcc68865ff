"""Small fleets to run in batches, and workers that misbehave for instances of certain names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: 2 requests a second take one `one` at 3 USD/h; each further 4 requests take another.
FLEET: dict[str, Any] = {
    "problem": "fleet",
    "models": [{"name": "chat"}],
    "offers": [{"name": "one", "device": "l4", "price_usd_per_hour": 3}],
    "demand": [{"model": "chat", "input_tokens": 100, "output_tokens": 100, "rate_per_s": 2}],
    "profiles": [{"offer": "one", "model": "chat", "input_tokens": 100, "output_tokens": 100, "max_rate_per_s": 4}],
}

#: What a worker runs in place of the search: it sleeps, takes memory or dies for instances of these names.
MISCHIEF = """
import os, time
from formulations.batch import worker
solve = worker.plan
def mischief(problem, options):
    if problem.name == "sleeps":
        time.sleep(600)
    if problem.name == "eats":
        kept = [b"x" * (64 << 20) for _ in range(1000) if not time.sleep(0.01)]
    if problem.name == "dies":
        os.write(2, b"last words")
        os.abort()
    if problem.name == "raises":
        raise ZeroDivisionError("on purpose")
    return solve(problem, options=options)
worker.plan = mischief
worker.main()
"""


def write_fleet(folder: Path, name: str, **changes: Any) -> Path:
    """An instance file of that name."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**FLEET, "name": name, **changes}))
    return path


def with_rate(rate: float) -> list[dict[str, Any]]:
    """The demand at another rate."""
    return [{**FLEET["demand"][0], "rate_per_s": rate}]
