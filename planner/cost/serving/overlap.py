"""Two halves of a step that take turns: one computes while the other's tokens go to the experts and back.

    hidden = min(h x C, (1 - s) x E)        step = C + E - hidden

C, E : seconds of computing and of the exchange of both halves, one after the other. Each half reads the weights and
launches its kernels itself, so C is more than that of the whole step. h : share of the layers that have experts; the
others have no exchange to compute beside. s : share of the GPU that the exchange takes from computing meanwhile.

Ignored: that the first half waits for nobody and the last one alone, which is less than one part in the layers; halves
of unequal length. Nothing is fitted. Source: DeepSeek-V3 technical report (arXiv 2412.19437), 3.2 and 3.4; SGLang's
two-batch overlap; vLLM's dual batch overlap.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.cost.serving.curves import NODES, NODES_PER_OCTAVE, FloatArray, WorkerCurves
from planner.cost.serving.worker import ServingWorker

#: Share of the GPU that a prompt's exchange takes: 20 of the 132 SMs of an H800 (arXiv 2412.19437, 3.2.2); documented.
#: Decode steps exchange over the network alone (DeepEP's low-latency kernels take no SM while they wait); documented.
PROMPT_EXCHANGE_SHARE = 20 / 132


def halved(curves: WorkerCurves) -> WorkerCurves:
    """Both halves of every step one after the other; a step of one token is not cut."""

    def both(table: FloatArray) -> FloatArray:
        cut = table.copy()
        cut[:, NODES_PER_OCTAVE:] = 2.0 * table[:, :-NODES_PER_OCTAVE]
        return cut

    return replace(
        curves,
        tokens=both(curves.tokens),
        step=both(curves.step),
        num_products=2 * curves.num_products,
        num_moe_layers=2 * curves.num_moe_layers,
    )


def hidden_s(computing: FloatArray, exchange: FloatArray, with_experts: FloatArray | float) -> FloatArray:
    """Seconds of the exchange that computing hides, of both halves; with_experts : h. All of one shape."""
    return np.asarray(np.minimum(with_experts * computing, exchange))


def share_with_experts(worker: ServingWorker) -> float:
    """Layers beside whose computing there is an exchange; 0 where halves take no turns."""
    return worker.model.num_moe_layers / worker.model.num_hidden_layers if worker.two_batch_overlap else 0.0


def cut(exchange: FloatArray) -> FloatArray:
    """Seconds of an exchange over NODES that computing may hide: none of a step that is not cut."""
    return np.where(NODES >= 2.0, exchange, 0.0)
