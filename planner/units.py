"""Units: SI base units inside, people's notation outside.

Inside the toolkit every quantity is in bytes, seconds, FLOP/s, bytes/s, watts or USD/hour, and its name says so.
People write "80GiB", "3.35TB/s", "400Gbit/s", "30ms", "$2.5/h"; this is the only module that converts.
Decimal and binary prefixes differ: 1 GB = 10**9 bytes, 1 GiB = 2**30 bytes; 8 bit = 1 byte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

KILO, MEGA, GIGA, TERA, PETA = 1e3, 1e6, 1e9, 1e12, 1e15
KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40
BITS_PER_BYTE = 8
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0

_DECIMAL = {"": 1.0, "k": KILO, "K": KILO, "M": MEGA, "G": GIGA, "T": TERA, "P": PETA}
_BINARY = {"Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": TIB}


def _byte_units() -> dict[str, float]:
    prefixes = {**_DECIMAL, **_BINARY}
    units = {f"{prefix}B": factor for prefix, factor in prefixes.items()}
    units |= {f"{prefix}bit": factor / BITS_PER_BYTE for prefix, factor in _DECIMAL.items()}
    return units | {"bytes": 1.0, "byte": 1.0}


BYTE_UNITS: Mapping[str, float] = _byte_units()
BANDWIDTH_UNITS: Mapping[str, float] = {f"{unit}/s": factor for unit, factor in _byte_units().items()} | {
    f"{prefix}bps": factor / BITS_PER_BYTE for prefix, factor in _DECIMAL.items()
}
TIME_UNITS: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # the micro sign
    "μs": 1e-6,  # the Greek letter
    "ms": 1e-3,
    "s": 1.0,
    "min": MINUTE_S,
    "h": HOUR_S,
    "d": DAY_S,
}
FLOPS_UNITS: Mapping[str, float] = {f"{prefix}FLOP/s": factor for prefix, factor in _DECIMAL.items()} | {
    f"{prefix}FLOPS": factor for prefix, factor in _DECIMAL.items()
}
PRICE_UNITS: Mapping[str, float] = {"$/h": 1.0, "USD/h": 1.0, "$/hour": 1.0, "USD/hour": 1.0}
POWER_UNITS: Mapping[str, float] = {"W": 1.0, "kW": KILO, "MW": MEGA}

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*?)?\s*")


def parse_quantity(value: object, units: Mapping[str, float], what: str) -> float:
    """Turn a number (already SI) or a string with a unit into SI.

    Raises ValueError that lists the accepted units; booleans, NaN and infinities are refused.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {what}: a number or a string such as {_examples(units)}")
    if isinstance(value, str):
        text = value.strip()
        dollars = text.startswith("$")
        match = _NUMBER.fullmatch(text.removeprefix("$"))
        if match is None:
            raise ValueError(f"cannot read {value!r} as {what}; write for example {_examples(units)}")
        unit = (match[2] or "").replace(" ", "")
        if dollars:
            unit = f"${unit}"
        if unit and unit not in units:
            raise ValueError(f"unknown unit {unit!r} in {value!r} for {what}; known: {', '.join(units)}")
        number = float(match[1]) * (units[unit] if unit else 1.0)
    else:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite")
    return number


def _examples(units: Mapping[str, float]) -> str:
    names = list(units)
    return " or ".join(f'"2{name}"' for name in names[:: max(1, len(names) // 3)][:3])


def _reader(units: Mapping[str, float], what: str) -> Callable[[object], float]:
    def read(value: object) -> float:
        return parse_quantity(value, units, what)

    return read


_SCHEMA = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}, mode="validation")

#: Pydantic field types: a number in SI or a string with a unit; validated to a float in SI.
Bytes = Annotated[float, BeforeValidator(_reader(BYTE_UNITS, "a size in bytes")), Field(ge=0), _SCHEMA]
BytesPerSecond = Annotated[
    float, BeforeValidator(_reader(BANDWIDTH_UNITS, "a bandwidth in bytes per second")), Field(gt=0), _SCHEMA
]
Seconds = Annotated[float, BeforeValidator(_reader(TIME_UNITS, "a time in seconds")), Field(ge=0), _SCHEMA]
FlopPerSecond = Annotated[float, BeforeValidator(_reader(FLOPS_UNITS, "a rate in FLOP/s")), Field(gt=0), _SCHEMA]
UsdPerHour = Annotated[float, BeforeValidator(_reader(PRICE_UNITS, "a price in USD per hour")), Field(ge=0), _SCHEMA]
Watts = Annotated[float, BeforeValidator(_reader(POWER_UNITS, "a power in watts")), Field(ge=0), _SCHEMA]


def format_bytes(value: float) -> str:
    """1.5e9 -> '1.40 GiB'. Binary prefixes, as memory is sold and as drivers report it."""
    for factor, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {name}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """0.0123 -> '12.3 ms'."""
    if value == 0:
        return "0 s"
    for factor, name in ((HOUR_S, "h"), (MINUTE_S, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        # Three digits round 0.9996 of a unit up to the unit.
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g} {name}"
    return f"{value * 1e9:.3g} ns"
