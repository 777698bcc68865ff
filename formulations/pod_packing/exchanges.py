"""Places that pods of other classes may take: which class fits into a place made for another one.

A pod of class a fits wherever one of class b does if it asks for no more of anything, for no more devices, for no more
of each, and may run on every node where b may. Then a place for b is worth at least as much as one for a in every good
set of prices, which steadies them, and one pattern or change stands for many. Pods that rules tie to others take no
places, and theirs are taken by nobody.

Reference: Ben Amor, Desrosiers and Valério de Carvalho 2006 (dual-optimal inequalities).
"""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.problem import BoolArray
from planner.workload import IntArray

#: Classes up to which it is sought who fits where; it takes their number cubed.
MOST_CLASSES = 2000


def fitting(request: IntArray, gpus: IntArray, milli: IntArray, allowed: BoolArray, tied: BoolArray) -> BoolArray:
    """Whether a pod of class a fits in a place for b, [J, J]; of two that are alike, the first in that of the second.
    Nobody in any, where there are more than MOST_CLASSES.

    request : [J, R]; gpus, milli, tied : [J]; allowed : [J, ...] of nodes.
    """
    if gpus.size > MOST_CLASSES:
        return np.zeros((gpus.size, gpus.size), dtype=np.bool_)
    found: BoolArray = (gpus[:, None] <= gpus) & ((gpus[:, None] == 0) | (milli[:, None] <= milli))
    for r in range(request.shape[1]):
        found &= request[:, r, None] <= request[:, r]
    rows, row = np.unique(allowed, axis=0, return_inverse=True)
    wider: BoolArray = (~rows).astype(np.float32) @ rows.T.astype(np.float32) == 0.0
    found &= wider[np.ix_(row.ravel(), row.ravel())] & ~tied & ~tied[:, None]
    return found & (~found.T | (np.arange(gpus.size)[:, None] < np.arange(gpus.size)))


def shortest(fits: BoolArray) -> IntArray:
    """Pairs (a, b), [E, 2], without those that follow from others; b comes before whatever its places are passed on to:
    whoever has many that fit into its place comes first."""
    steps = fits.astype(np.float32)
    pairs = np.argwhere(fits & (steps @ steps == 0.0))
    return pairs[np.argsort(-fits.sum(axis=0)[pairs[:, 1]], kind="stable")]
