"""Watts, joules and dollars. Power is modelled from the share of time in each phase: it may be tens of percent off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.step_times import FloatArray, refuse
from planner.units import HOUR_S

JOULES_PER_KWH = 3.6e6

#: Share of board power that a GPU draws in each phase (confidence: modelled).
#: Idle: 80 W of 700 W, H200 with a model loaded (Alice GPU energy benchmark, 2026); other boards may differ.
IDLE_SHARE = 0.12
#: Prefill reaches the board limit (POLCA, arXiv 2308.12908).
PREFILL_SHARE = 1.0
#: Decode is bound by memory and draws less: 0.5-0.7 is assumed for the batches of a busy server, after POLCA; an H200
#: has been seen at 0.2-0.43 (137-300 W of 700 W, arXiv 2605.11999), so this is high for small batches.
DECODE_SHARE = 0.6


def gpu_power_w(
    board_power_w: npt.ArrayLike,
    prefill_fraction: npt.ArrayLike,
    decode_fraction: npt.ArrayLike,
    *,
    idle_share: float = IDLE_SHARE,
    prefill_share: float = PREFILL_SHARE,
    decode_share: float = DECODE_SHARE,
) -> FloatArray:
    """Mean watts of one GPU that prefills and decodes for these fractions of the time and idles for the rest, [plans].

    board_power_w : TDP. The shares are of it; give measured ones where there are any.
    Errors: OptionError for negative power, or fractions that are negative or sum to more than one.
    """
    board, prefill, decode = (
        np.asarray(x, dtype=np.float64) for x in (board_power_w, prefill_fraction, decode_fraction)
    )
    refuse(~(board >= 0), "board_power_w must not be negative")
    refuse(~((prefill >= 0) & (decode >= 0) & (prefill + decode <= 1 + 1e-9)),
           "prefill_fraction and decode_fraction must not be negative, and sum to at most 1")  # fmt: skip
    idle = np.maximum(1 - prefill - decode, 0.0)
    return np.asarray(board * (idle * idle_share + prefill * prefill_share + decode * decode_share))


def joules_per_token(power_w: npt.ArrayLike, tokens_per_s: npt.ArrayLike) -> FloatArray:
    """Joules of each token where so many watts make so many tokens a second, [plans]; inf where none are made."""
    return _per(power_w, tokens_per_s, "power_w")


def usd_per_million_tokens(price_usd_per_hour: npt.ArrayLike, tokens_per_s: npt.ArrayLike) -> FloatArray:
    """Dollars of a million tokens at an hourly price of all that makes them, [plans]; inf where none are made."""
    return _per(price_usd_per_hour, tokens_per_s, "price_usd_per_hour") / HOUR_S * 1e6


def electricity_usd_per_hour(power_w: npt.ArrayLike, price_usd_per_kwh: npt.ArrayLike) -> FloatArray:
    """Dollars an hour of a steady draw, [plans]."""
    power, price = np.asarray(power_w, dtype=np.float64), np.asarray(price_usd_per_kwh, dtype=np.float64)
    refuse(~(power >= 0) | ~(price >= 0), "power_w and price_usd_per_kwh must not be negative")
    return np.asarray(power * price * HOUR_S / JOULES_PER_KWH)


def _per(amount: npt.ArrayLike, tokens_per_s: npt.ArrayLike, name: str) -> FloatArray:
    value, rate = np.asarray(amount, dtype=np.float64), np.asarray(tokens_per_s, dtype=np.float64)
    refuse(~(value >= 0), f"{name} must not be negative")
    refuse(~(rate >= 0), "tokens_per_s must not be negative")
    return np.asarray(np.where(rate > 0, value / np.where(rate > 0, rate, 1.0), np.inf))
