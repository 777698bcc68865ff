"""What a plan prints comes in one order, whatever the problem: answer and margins, plain rule, bound, details."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
INSTANCES = Path(__file__).resolve().parents[2] / "instances"
#: A line of the answer, the name of the plain rule, and what starts the details, if any.
ORDER = {
    "experts/four_experts.yaml": ("objective", "EPLB global", "assumptions"),
    "fleet/two_offers.yaml": ("instances", "best single offer", "requests, tokens in/out"),
    "parallel/given_table.yaml": ("serves", "best uniform replicas", "Pareto frontier"),
    "parallel/windows_home.yaml": ("token", "Halda's iteration", "assumptions"),
    "parallel/train_8b_fsdp_cost.yaml": ("memory", "tensor parallel over the node", "  assumptions"),
    "pods/two_nodes.yaml": ("placed", "kube-default", "search"),
}


@pytest.mark.parametrize("name", ORDER)
def test_answer_then_rule_then_bound_then_details(gpuplan: Invoke, name: str) -> None:
    result = gpuplan("plan", str(INSTANCES / name), "--time-limit", "5")
    assert result.exit_code == 0, result.output
    first, rule, detail = ORDER[name]
    places = [result.stdout.index(text) for text in (f"  {first}", f"plan   {rule}", "\n  bound  ", detail)]
    assert places == sorted(places), result.stdout
    if "  bottleneck" in result.stdout:
        assert result.stdout.index("  bottleneck") < places[1]


def test_what_is_to_be_most_has_no_minus_sign(gpuplan: Invoke) -> None:
    """Throughput is minimised with a minus sign: 7.25 requests/s have an objective of -7.25 in the document."""
    result = gpuplan("plan", str(INSTANCES / "parallel/given_table.yaml"))
    assert "no plan is above 7.25" in result.stdout
    assert "-7.25" not in result.stdout
