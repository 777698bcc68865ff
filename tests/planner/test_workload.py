"""Expert loads and routing traces as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from planner.workload import ExpertLoad, RoutingTrace


def test_counts_are_copied_and_frozen() -> None:
    counts = np.array([[1.0, 2.0], [0.0, 0.0]])
    load = ExpertLoad(name="day", counts=counts)
    counts[0, 0] = 99.0
    assert load.counts.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="read-only"):
        load.counts[0, 0] = 5.0


@pytest.mark.parametrize(
    "counts",
    [np.ones(3), np.ones((1, 2, 3)), np.ones((0, 3)), [[1.0, -1.0]], [[1.0, np.nan]], [[np.inf, 1.0]]],
)
def test_counts_that_mean_nothing_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="expert counts of 'bad'"):
        ExpertLoad(name="bad", counts=counts)  # type: ignore[arg-type]


#: Three tokens, two layers, two choices; the last token's second choice in layer 1 is missing.
TRACE = np.array([[[0, 1], [2, 0]], [[0, 2], [2, 1]], [[1, 0], [0, -1]]])


def test_counts_of_a_trace_by_hand() -> None:
    """Layer 0: expert 0 three times, 1 twice, 2 once. Layer 1: 0 twice, 1 once, 2 twice; -1 counts nowhere."""
    counts = RoutingTrace(experts=TRACE).counts(4)
    assert counts.tolist() == [[3, 2, 1, 0], [2, 1, 2, 0]]


def test_transitions_follow_the_best_choice_by_hand() -> None:
    """0 -> 2 twice and 1 -> 0 once out of three tokens."""
    flow = RoutingTrace(experts=TRACE).transitions(3)
    assert flow.shape == (1, 3, 3)
    assert flow[0, 0, 2] == pytest.approx(2 / 3)
    assert flow[0, 1, 0] == pytest.approx(1 / 3)
    assert flow.sum() == pytest.approx(1.0)


def test_a_token_that_is_missing_in_a_layer_makes_no_transition() -> None:
    """Token 1 is missing in layer 1: only token 0 goes from layer 0 to 1, and both layers still sum to 1."""
    experts = np.array([[[0], [1], [0]], [[1], [-1], [1]]])
    flow = RoutingTrace(experts=experts).transitions(2)
    assert flow[0].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert flow[1].tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_narrow_integers_do_not_overflow() -> None:
    experts = np.full((5, 2, 1), 255, dtype=np.int16)
    flow = RoutingTrace(experts=experts).transitions(256)
    assert flow[0, 255, 255] == 1.0


def test_select_keeps_documents_beside_their_tokens() -> None:
    trace = RoutingTrace(experts=TRACE, documents=np.array([7, 7, 9]), source="here")
    part = trace.select(np.array([True, False, True]))
    assert part.experts.tolist() == TRACE[[0, 2]].tolist()
    assert part.documents is not None
    assert part.documents.tolist() == [7, 9]
    assert part.source == "here"


@pytest.mark.parametrize("experts", [np.zeros((2, 2), int), np.zeros((0, 1, 1), int), np.full((1, 1, 1), -2)])
def test_traces_that_mean_nothing_are_refused(experts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"trace|expert ids"):
        RoutingTrace(experts=experts)


def test_documents_need_one_entry_a_token() -> None:
    with pytest.raises(ValueError, match="documents"):
        RoutingTrace(experts=TRACE, documents=np.zeros(2, dtype=np.int64))
