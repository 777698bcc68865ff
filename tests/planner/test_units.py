"""Quantities as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from planner.units import (
    BANDWIDTH_UNITS,
    BYTE_UNITS,
    FLOPS_UNITS,
    POWER_UNITS,
    PRICE_UNITS,
    TIME_UNITS,
    Bytes,
    BytesPerSecond,
    Seconds,
    format_bytes,
    format_seconds,
    parse_quantity,
)

UNITS = {
    "bytes": BYTE_UNITS,
    "bandwidth": BANDWIDTH_UNITS,
    "time": TIME_UNITS,
    "flops": FLOPS_UNITS,
    "price": PRICE_UNITS,
    "power": POWER_UNITS,
}


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("80GB", "bytes", 80e9),
        ("80GiB", "bytes", 80 * 2**30),
        ("1.5 TiB", "bytes", 1.5 * 2**40),
        ("8bit", "bytes", 1.0),
        ("1Gbit", "bytes", 125e6),
        ("512", "bytes", 512.0),
        ("2 bytes", "bytes", 2.0),
        ("3.35TB/s", "bandwidth", 3.35e12),
        ("400Gbit/s", "bandwidth", 50e9),
        ("400Gbps", "bandwidth", 50e9),
        ("64GiB/s", "bandwidth", 64 * 2**30),
        ("30ms", "time", 0.03),
        ("250us", "time", 250e-6),
        ("250\u00b5s", "time", 250e-6),
        ("250\u03bcs", "time", 250e-6),
        ("2h", "time", 7200.0),
        ("1.5min", "time", 90.0),
        ("1e-3s", "time", 1e-3),
        ("989TFLOPS", "flops", 989e12),
        ("2PFLOP/s", "flops", 2e15),
        ("$2.5/h", "price", 2.5),
        (" 2.5 USD/hour ", "price", 2.5),
        ("700W", "power", 700.0),
        ("0.7kW", "power", 700.0),
        (".5s", "time", 0.5),
        (7, "bytes", 7.0),
        (0.25, "time", 0.25),
    ],
)
def test_notation_to_si(text: object, kind: str, expected: float) -> None:
    assert parse_quantity(text, UNITS[kind], "it") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("80Gb", "bytes"),
        ("80gb", "bytes"),
        ("80G", "bytes"),
        ("400Gb/s", "bandwidth"),
        ("80GB", "bandwidth"),
        ("3 weeks", "time"),
        ("5 m", "time"),
        ("2.5\u20ac/h", "price"),
        ("", "bytes"),
        ("GB", "bytes"),
        ("1,000 GB", "bytes"),
        ("1_000", "bytes"),
        ("0x10", "bytes"),
        ("1e999", "bytes"),
        ("nan", "bytes"),
        ("inf", "time"),
        ("--5s", "time"),
        ("$$2/h", "price"),
        (True, "bytes"),
        (False, "time"),
        (None, "bytes"),
        ([], "bytes"),
        (float("nan"), "bytes"),
        (float("inf"), "time"),
        (10**400, "bytes"),
        ("9" * 5000, "bytes"),
    ],
)
def test_what_is_not_understood_is_refused(text: object, kind: str) -> None:
    with pytest.raises(ValueError, match="it"):
        parse_quantity(text, UNITS[kind], "it")


def test_a_refused_unit_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown unit 'Gb'.*known: .*GiB"):
        parse_quantity("80Gb", BYTE_UNITS, "a size")


@given(text=st.text(max_size=30), kind=st.sampled_from(sorted(UNITS)))
def test_any_text_is_a_finite_number_or_a_value_error(text: str, kind: str) -> None:
    try:
        value = parse_quantity(text, UNITS[kind], "it")
    except ValueError:
        return
    assert math.isfinite(value)


@given(number=st.floats(0, 1e12), kind=st.sampled_from(sorted(UNITS)), data=st.data())
def test_every_known_unit_scales(number: float, kind: str, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(unit for unit in UNITS[kind] if "$" not in unit)))
    assert parse_quantity(f"{number!r} {unit}", UNITS[kind], "it") == pytest.approx(number * UNITS[kind][unit])


@given(value=st.floats(1024.0, 1e18))
def test_formatted_bytes_are_read_back(value: float) -> None:
    assert parse_quantity(format_bytes(value), BYTE_UNITS, "it") == pytest.approx(value, rel=6e-3)


@given(value=st.floats(1e-9, 1e7))
def test_formatted_seconds_are_read_back_without_an_exponent(value: float) -> None:
    text = format_seconds(value)
    assert parse_quantity(text, TIME_UNITS, "it") == pytest.approx(value, rel=6e-3)
    assume(value < 999 * 3600)
    assert "e" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 s"), (0.0123, "12.3 ms"), (90.0, "1.5 min"), (3e-9, "3 ns"), (2e-5, "20 \u00b5s")]
)
def test_seconds_for_people(value: float, text: str) -> None:
    assert format_seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.5e9, "1.40 GiB"), (512.0, "512 B"), (2**40, "1.00 TiB")])
def test_bytes_for_people(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("kind", "value"), [(Bytes, -1), (Bytes, "-1GB"), (BytesPerSecond, 0), (Seconds, "-1ms"), (Seconds, True)]
)
def test_fields_have_their_sign(kind: object, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


def test_fields_read_notation() -> None:
    assert TypeAdapter(Bytes).validate_python("2KiB") == 2048.0
    assert TypeAdapter(BytesPerSecond).validate_json('"8Gbit/s"') == 1e9
