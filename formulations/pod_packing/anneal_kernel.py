"""Compiled part of `anneal`: see there for what it does. Plain Python on arrays; numba compiles it on first use and
keeps the machine code on disk."""

from __future__ import annotations

import numba
import numpy as np

#: Pods that one insertion may push off their node.
MOST_EJECTED = 3
#: Nodes that are tried for a pod that was pushed off.
TRIES = 8


@numba.njit(cache=True, nogil=True)
def _random(state, bound):
    """A number from 0 to bound - 1 (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.int64(((x * np.uint64(2685821657736338717)) >> np.uint64(33)) % np.uint64(bound))


@numba.njit(cache=True, nogil=True)
def _fits(free, request, node, pod):
    fits = True
    for r in range(free.shape[1]):
        fits = fits and free[node, r] >= request[pod, r]
    return fits


@numba.njit(cache=True, nogil=True)
def _slack(free, scale, node):
    """Square of the smallest free share of a node: free space counts more where it is together."""
    least = 1.0
    for r in range(free.shape[1]):
        least = min(least, free[node, r] * scale[node, r])
    return least * least


@numba.njit(cache=True, nogil=True)
def _cost(pod, at, home, weight, light):
    """Of a pod at a node, -1 for none."""
    if at < 0:
        return weight[pod] + (light[1] if home[pod] >= 0 else 0.0)
    return light[0] if home[pod] >= 0 and at != home[pod] else 0.0


@numba.njit(cache=True, nogil=True)
def _put(free, request, node, pod, to):
    """Change the node of a pod and what is free."""
    old = node[pod]
    for r in range(free.shape[1]):
        if old >= 0:
            free[old, r] += request[pod, r]
        if to >= 0:
            free[to, r] -= request[pod, r]
    node[pod] = to


@numba.njit(cache=True, nogil=True)
def anneal(
    node, free, request, scale, allowed, klass, home, weight, must, value, most, steps, hot, cold, gather, light,
    excess, random, best, best_node,
):  # fmt: skip
    """So many steps, from `hot` to `cold`; node [P] and free [N, R] are changed, best_node [P] where a plan is better.

    allowed : [J, N]; klass, home, weight, value : [P]; must : [P] pods that need a node. most : pods disturbed at most.
    best : value placed, and evictions and moves as one number, of best_node; the first is to be large, the other small.
    """
    num, pods = free.shape[0], node.size
    placed, out, away, gone = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for p in range(pods):
        placed += value[p] if node[p] >= 0 else 0
        out += 1 if node[p] < 0 and must[p] else 0
        away += 1 if home[p] >= 0 and node[p] != home[p] else 0
        gone += 1 if home[p] >= 0 and node[p] < 0 else 0
    changed = np.empty(2 + MOST_EJECTED, dtype=np.int64)
    before = np.empty(2 + MOST_EJECTED, dtype=np.int64)
    touched = np.empty(8 + 2 * MOST_EJECTED, dtype=np.int64)
    here = np.empty(pods, dtype=np.int64)
    accepted = 0
    for step in range(steps):
        temperature = hot * (cold / hot) ** (step / steps)
        count = 0
        kind = _random(random, 8)
        p = _random(random, pods)
        target = _random(random, num)
        if kind == 0 and home[p] >= 0:
            target = home[p]
        if node[p] == target or not allowed[klass[p], target]:
            continue
        if node[p] >= 0 and kind >= 4:
            # Change places with a pod of the target.
            q = _random(random, pods)
            if node[q] < 0 or node[q] == node[p] or not allowed[klass[p], node[q]] or not allowed[klass[q], node[p]]:
                continue
            a, b = node[p], node[q]
            _put(free, request, node, p, -1)
            _put(free, request, node, q, -1)
            if not _fits(free, request, b, p) or not _fits(free, request, a, q):
                _put(free, request, node, p, a)
                _put(free, request, node, q, b)
                continue
            _put(free, request, node, p, b)
            _put(free, request, node, q, a)
            changed[0], before[0], changed[1], before[1] = p, a, q, b
            count = 2
        else:
            changed[0], before[0] = p, node[p]
            count = 1
            _put(free, request, node, p, -1)
            if not _fits(free, request, target, p):
                there = 0
                for q in range(pods):
                    if node[q] == target:
                        here[there] = q
                        there += 1
                while there > 0 and count <= MOST_EJECTED and not _fits(free, request, target, p):
                    at = _random(random, there)
                    q = here[at]
                    there -= 1
                    here[at] = here[there]
                    changed[count], before[count] = q, target
                    count += 1
                    _put(free, request, node, q, -1)
            if _fits(free, request, target, p):
                _put(free, request, node, p, target)
                for c in range(1, count):
                    q = changed[c]
                    start = home[q] if home[q] >= 0 and home[q] != target else _random(random, num)
                    for shift in range(min(num, TRIES)):
                        to = (start + shift) % num
                        if to != target and allowed[klass[q], to] and _fits(free, request, to, q):
                            _put(free, request, node, q, to)
                            break
            else:
                for c in range(count):
                    _put(free, request, node, changed[c], before[c])
                continue
        delta, new_away, new_out, new_placed, new_gone = 0.0, away, out, placed, gone
        nodes = 0
        for c in range(count):
            q, old, new = changed[c], before[c], node[changed[c]]
            delta += _cost(q, new, home, weight, light) - _cost(q, old, home, weight, light)
            new_placed += value[q] * (np.int64(new >= 0) - np.int64(old >= 0))
            if must[q]:
                new_out += np.int64(new < 0) - np.int64(old < 0)
            if home[q] >= 0:
                new_away += np.int64(new != home[q]) - np.int64(old != home[q])
                new_gone += np.int64(new < 0) - np.int64(old < 0)
            for n in (old, new):
                if n >= 0:
                    known = False
                    for t in range(nodes):
                        known = known or touched[t] == n
                    if not known:
                        touched[nodes] = n
                        nodes += 1
        delta += excess * (max(0, new_away - most) - max(0, away - most))
        for t in range(nodes):
            delta -= gather * _slack(free, scale, touched[t])
        for c in range(count):
            changed_to = node[changed[c]]
            _put(free, request, node, changed[c], before[c])
            before[c] = changed_to
        for t in range(nodes):
            delta += gather * _slack(free, scale, touched[t])
        if delta > 0.0 and _random(random, 1 << 30) / float(1 << 30) >= np.exp(-delta / temperature):
            continue
        # Pods leave before others come, so that what is free never falls below nothing.
        for c in range(count):
            if before[c] < 0 or node[changed[c]] >= 0:
                _put(free, request, node, changed[c], -1)
        for c in range(count):
            if before[c] >= 0:
                _put(free, request, node, changed[c], before[c])
        accepted += 1
        away, out, placed, gone = new_away, new_out, new_placed, new_gone
        if out == 0 and away <= most:
            light_rank = gone * (pods + 1) + away
            if placed > best[0] or (placed == best[0] and light_rank < best[1]):
                best[0], best[1] = placed, light_rank
                best_node[:] = node
    return accepted
