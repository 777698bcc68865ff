"""Watts, joules and dollars by hand."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.energy import electricity_usd_per_hour, gpu_power_w, joules_per_token, usd_per_million_tokens
from planner.errors import OptionError


def test_power_by_hand() -> None:
    """700 W: idle 84, prefill 700, decode 420; a quarter, a half and a quarter of the time make 84/4 + 350 + 105."""
    assert gpu_power_w(700, [0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.25]) == pytest.approx([84, 700, 420, 476])
    assert gpu_power_w(700, 0.0, 1.0, decode_share=0.3) == pytest.approx(210)


def test_joules_and_dollars_by_hand() -> None:
    """4000 W at 10,000 tokens/s: 0.4 J each. $36/h over 36 million tokens an hour: $1 a million."""
    assert joules_per_token(4000, 10_000) == pytest.approx(0.4)
    assert usd_per_million_tokens(36, 10_000) == pytest.approx(1.0)
    assert np.isinf(usd_per_million_tokens([36.0], [0.0])).all()
    # 4 kW for an hour at 10 cents.
    assert electricity_usd_per_hour(4000, 0.1) == pytest.approx(0.4)


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="at most 1"):
        gpu_power_w(700, 0.8, 0.3)
    with pytest.raises(OptionError, match="board_power_w"):
        gpu_power_w(-1, 0.1, 0.1)
    with pytest.raises(OptionError, match="tokens_per_s"):
        joules_per_token(100, -1)
    with pytest.raises(OptionError, match="price_usd_per_hour"):
        usd_per_million_tokens(-1, 1)
