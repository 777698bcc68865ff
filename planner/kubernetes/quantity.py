"""Resource quantities: the whole grammar of Kubernetes, exact, rounded up as the API server does.

    quantity = [+-] number [suffix]
    number   = digits | digits . digits | digits . | . digits
    suffix   = Ki Mi Gi Ti Pi Ei | n u m "" k M G T P E | (e|E) [+-] digits

"1E" is an exa, "1E3" is a thousand; "K" does not exist; "m" is a thousandth of memory too.
Source: k8s.io/apimachinery/pkg/api/resource, quantity.go.
"""

from __future__ import annotations

import re
from fractions import Fraction

_PATTERN = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d+)|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?))", re.ASCII)
_BINARY = {prefix + "i": Fraction(2 ** (10 * power)) for power, prefix in enumerate("KMGTPE", start=1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FACTOR = _BINARY | {suffix: Fraction(10) ** power for suffix, power in _DECIMAL.items()}
#: Longest text that is looked at, and the largest exponent: beyond both nothing fits into 63 bits anyway.
MAX_CHARS, MAX_EXPONENT = 64, 30
#: Largest amount, in the smallest unit that is counted: 256 TiB; what thirty thousand nodes have stays in 63 bits.
MAX_AMOUNT = 2**48


def parse_amount(value: object, per_unit: int = 1) -> int:
    """A quantity in units of 1 / per_unit (1000: milli), rounded up; ValueError says what is wrong.

    Plain numbers are read as their text. Negative amounts and those above 2**48 units are refused.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"is no quantity: {str(value)[:MAX_CHARS]!r}")
    text = value if isinstance(value, str) else repr(value)
    match = _PATTERN.fullmatch(text) if len(text) <= MAX_CHARS else None
    if match is None:
        raise ValueError(f"is no quantity, such as 500m, 2, 1.5Gi or 1e3: {text[:MAX_CHARS]!r}")
    sign, digits, exponent, suffix = match.groups()
    if exponent is not None and abs(int(exponent[1:])) > MAX_EXPONENT:
        raise ValueError(f"has too large an exponent: {text!r}")
    factor = Fraction(10) ** int(exponent[1:]) if exponent is not None else _FACTOR[suffix]
    number = Fraction(digits.removesuffix(".")) * factor * per_unit
    if sign == "-" and number:
        raise ValueError(f"is negative: {text!r}")
    amount = -(-number.numerator // number.denominator)
    if amount > MAX_AMOUNT:
        raise ValueError(f"is more than can be counted: {text!r}")
    return amount
