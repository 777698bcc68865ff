"""Compiled parts of `pricing`: its knapsacks, see there for what the tables mean, and pods put onto one node. Plain
Python on arrays; numba compiles it on first use and keeps the machine code on disk."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def joined(one, two):
    """(one ⊕ two)[c] = max over i of one[i] + two[c - i]; both [C + 1], rising and not negative."""
    found = one + two[0]
    for i in range(1, two.size):
        # Where a table does not rise there is nothing to gain from one more unit.
        if two[i] <= two[i - 1]:
            continue
        for c in range(i, one.size):
            value = one[c - i] + two[i]
            if value > found[c]:
                found[c] = value
    return found


@numba.njit(cache=True, nogil=True)
def filled(values, sizes, cores, most, size):
    """[most + 1, size] : most value of any number of each item, sizes and cores together within both."""
    table = np.zeros((most + 1, size))
    for m in range(1, most + 1):
        table[m] = table[m - 1]
        for item in range(values.size):
            if sizes[item] <= m:
                first, gain = cores[item], values[item]
                before = table[m - sizes[item]]
                for c in range(first, size):
                    value = before[c - first] + gain
                    if value > table[m, c]:
                        table[m, c] = value
    return table


@numba.njit(cache=True, nogil=True)
def filled_cores(values, cores, size):
    """[size] : most value of any number of each item, cores together within it; every item has cores."""
    table = np.zeros(size)
    for c in range(1, size):
        best = table[c - 1]
        for item in range(values.size):
            if cores[item] <= c and table[c - cores[item]] + values[item] > best:
                best = table[c - cores[item]] + values[item]
        table[c] = best
    return table


@numba.njit(cache=True, nogil=True)
def packed(free, device, admitted, request, gpus, milli, alone, left, wanted, wanted_devices, order):
    """What fits on one node: of the pods `wanted` [n], in turn, those that do on their devices [n, D] (-1 for none);
    then of each class of `order` as many as there is room for, at most `left` [J] in all.

    free [R], device [D] : what the node has; admitted [J]; request [J, R]; gpus, milli [J]; alone [J, J].
    Returns the classes [m] of the pods that fit, those wanted first, and their devices [m, D].
    """
    num_devices = device.size
    amounts, shelf = free.copy(), device.copy()
    here = np.zeros(left.size, np.int64)
    barred = ~admitted
    found = np.empty(64, np.int64)
    places = np.full((64, num_devices), -1, np.int64)
    num = 0
    mine = np.empty(num_devices, np.int64)
    for place in range(wanted.size + order.size):
        asked = place < wanted.size
        j = wanted[place] if asked else order[place - wanted.size]
        while here[j] < left[j] and not barred[j] and _has(amounts, request[j]):
            mine[:] = -1
            if asked:
                mine[:] = wanted_devices[place]
                if not _have(shelf, mine, milli[j]):
                    break
            elif not _tightest(shelf, gpus[j], milli[j], mine):
                break
            if num == found.size:
                found = np.append(found, np.empty(num, np.int64))
                places = np.append(places, np.full((num, num_devices), -1, np.int64), axis=0)
            found[num], places[num] = j, mine
            num += 1
            here[j] += 1
            for r in range(amounts.size):
                amounts[r] -= request[j, r]
            for d in mine:
                if d >= 0:
                    shelf[d] -= milli[j]
            for i in range(left.size):
                barred[i] |= alone[j, i]
            if asked:
                break
    return found[:num], places[:num]


@numba.njit(cache=True, nogil=True)
def _has(amounts, request):
    enough = True
    for r in range(amounts.size):
        enough &= request[r] <= amounts[r]
    return enough


@numba.njit(cache=True, nogil=True)
def _have(shelf, devices, milli):
    enough = True
    for d in devices:
        enough &= d < 0 or shelf[d] >= milli
    return enough


@numba.njit(cache=True, nogil=True)
def _tightest(shelf, gpus, milli, mine):
    """The devices with the least left that is enough, into `mine`; False where they are too few."""
    for g in range(gpus):
        best = -1
        for d in range(shelf.size):
            if shelf[d] >= milli and (best < 0 or shelf[d] < shelf[best]):
                taken = False
                for other in range(g):
                    taken |= mine[other] == d
                if not taken:
                    best = d
        if best < 0:
            return False
        mine[g] = best
    return True
