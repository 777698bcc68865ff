"""Resource quantities, against what the API server makes of them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.kubernetes.quantity import parse_amount
from planner.kubernetes.reading import Notes, Value


@pytest.mark.parametrize(
    ("text", "per_unit", "amount"),
    [
        ("500m", 1000, 500),
        ("0.5", 1000, 500),
        (".5", 1000, 500),
        ("5.", 1, 5),
        ("+2", 1, 2),
        ("1.5Gi", 1, 3 * 2**29),
        ("1k", 1, 1000),
        ("1E3", 1, 1000),
        ("1e3", 1, 1000),
        ("12e-3", 1000, 12),
        ("100n", 1000, 1),  # rounded up
        ("1u", 1, 1),
        ("128974848000m", 1, 128974848),
        ("1501m", 1, 2),
        (2, 1000, 2000),
        (0.25, 1000, 250),
        ("0", 1, 0),
        ("-0", 1, 0),
    ],
)
def test_amounts(text: object, per_unit: int, amount: int) -> None:
    assert parse_amount(text, per_unit) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K",
        "1K",
        "1ki",
        "1 Gi",
        "Gi",
        ".",
        "1e",
        "--1",
        "NaN",
        "inf",
        "1_000",
        "0x10",
        "1Gi2",
        "٣",
        "1e99",
        "9" * 80,
    ],
)
def test_not_quantities(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no quantity|exponent|more than"):
        parse_amount(text)


@pytest.mark.parametrize("value", [True, None, [], {}, "-1", -3, float("nan"), float("inf"), "1E", "500Ti"])
def test_refused(value: object) -> None:
    """1E is an exa, which is more than can be counted; 500 TiB too."""
    with pytest.raises(ValueError, match="is"):
        parse_amount(value)


SUFFIX = {"": 1, "m": Fraction(1, 1000), "k": 1000, "Ki": 1024, "M": 10**6, "Mi": 2**20}


@settings(deadline=None)
@given(st.integers(0, 10**5), st.integers(0, 999), st.sampled_from(sorted(SUFFIX)), st.sampled_from([1, 1000]))
def test_rounds_up_exactly(whole: int, part: int, suffix: str, per_unit: int) -> None:
    exact = (whole + Fraction(part, 1000)) * SUFFIX[suffix] * per_unit
    assert 0 <= parse_amount(f"{whole}.{part:03}{suffix}", per_unit) - exact < 1


@pytest.mark.parametrize(("text", "wrong"), [("1", ""), ("2k", ""), ("500m", "whole number"), ("1.5", "whole number")])
def test_devices_come_whole(text: str, wrong: str) -> None:
    """Extended resources are counted, other amounts are measured: half a device is a mistake, half a byte is not."""
    notes = Notes()
    Value({"nvidia.com/gpu": text, "memory": "1.5"}, "pods.json", "requests", notes).amounts()
    found = [finding.message for finding in notes.findings]
    assert bool(found) == bool(wrong)
    assert all(wrong in message for message in found)
