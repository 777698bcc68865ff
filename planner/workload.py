"""What is asked of the cluster: latency limits, expert loads and routing traces."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.descriptions.base import Description
from planner.units import Seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Slo(Description):
    """Latency limits of a service; None is no limit. `percentile` says which request has to keep them; None the mean.

    ttft_s : time to first token; tpot_s : time per output token after it.
    """

    ttft_s: Annotated[Seconds, Field(gt=0)] | None = None
    tpot_s: Annotated[Seconds, Field(gt=0)] | None = None
    percentile: Annotated[float, Field(gt=0, lt=100)] | None = None


def read_only(array: npt.NDArray[np.generic]) -> None:
    """Freeze an array that a frozen dataclass holds."""
    array.setflags(write=False)


def read_only_fields(holder: DataclassInstance) -> None:
    """Freeze every array that a frozen dataclass holds."""
    for one in fields(holder):
        value = getattr(holder, one.name)
        if isinstance(value, np.ndarray):
            read_only(value)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ExpertLoad:
    """One scenario: tokens routed to each logical expert under one workload.

    counts : float64 [num_decoder_layers, num_experts], tokens, finite and not negative. An all-zero row is a dense
        layer, or one that this workload did not reach.
    weight : how much the scenario counts, relative to the others.
    source : where the counts come from, for messages.
    """

    name: str
    counts: FloatArray
    weight: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.float64)
        if counts.ndim != 2 or 0 in counts.shape:
            raise ValueError(f"expert counts of {self.name!r} must be [layers, experts], got shape {counts.shape}")
        if not np.isfinite(counts).all() or (counts < 0).any():
            raise ValueError(f"expert counts of {self.name!r} must be finite and not negative")
        read_only(counts)
        object.__setattr__(self, "counts", counts)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RoutingTrace:
    """Which experts each token was routed to.

    experts : integer [num_tokens, num_moe_layers, top_k], logical expert ids, best first; -1 where a token is missing.
    documents : int64 [num_tokens] or None; tokens of one document are not independent, so splits go by document.
    """

    experts: npt.NDArray[np.int16] | npt.NDArray[np.int32] | IntArray
    documents: IntArray | None = None
    source: str = ""

    def __post_init__(self) -> None:
        experts = self.experts
        if experts.ndim != 3 or 0 in experts.shape:
            raise ValueError(f"a routing trace must be [tokens, layers, k], got shape {experts.shape}")
        if experts.min() < -1:
            raise ValueError(f"expert ids must be at least -1, got {experts.min()}")
        if self.documents is not None and self.documents.shape != experts.shape[:1]:
            raise ValueError(f"documents has shape {self.documents.shape} for {experts.shape[0]} tokens")
        read_only(experts)

    @property
    def num_layers(self) -> int:
        """Number of MoE layers the trace covers."""
        return int(self.experts.shape[1])

    def counts(self, num_experts: int) -> FloatArray:
        """Tokens routed to each expert, [num_layers, num_experts]."""
        result = np.zeros((self.num_layers, num_experts))
        for layer in range(self.num_layers):
            ids = self.experts[:, layer].ravel()
            result[layer] = np.bincount(ids[ids >= 0], minlength=num_experts)
        return result

    def transitions(self, num_experts: int) -> FloatArray:
        """Fraction of tokens that go from expert e (best choice) in layer l to f in layer l+1.

        Returns float64 [num_layers - 1, num_experts, num_experts]; each layer sums to 1 where tokens are present.
        """
        first = self.experts[:, :, 0].astype(np.int64)
        result = np.zeros((self.num_layers - 1, num_experts, num_experts))
        for layer in range(self.num_layers - 1):
            source, target = first[:, layer], first[:, layer + 1]
            present = (source >= 0) & (target >= 0)
            pair = source[present] * num_experts + target[present]
            counts = np.bincount(pair, minlength=num_experts * num_experts).reshape(num_experts, num_experts)
            result[layer] = counts / max(1, int(present.sum()))
        return result

    def select(self, tokens: npt.NDArray[np.bool_]) -> RoutingTrace:
        """The trace of some tokens only (a train or test part)."""
        documents = None if self.documents is None else self.documents[tokens]
        return RoutingTrace(experts=self.experts[tokens], documents=documents, source=self.source)
