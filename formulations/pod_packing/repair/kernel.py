"""Compiled part of the pricing of `repair`: see `pricing` for what it computes. Plain Python on arrays; numba compiles
it on first use and keeps the machine code on disk."""

from __future__ import annotations

import numba
import numpy as np

#: Devices of a node and pods on it that a set of bits can hold.
MOST_BITS = 62
#: Pods that a candidate adds at most.
MOST_ADDED = 256
#: Candidates kept of a node in one round.
KEPT = 2


@numba.njit(cache=True, nogil=True)
def share_table(values, parts, allowed, table, last):
    """table[m] : most value of share pods, any number of each, on m parts of a device; last[m] : the class put last."""
    table[0], last[0] = 0.0, -1
    for m in range(1, table.size):
        table[m], last[m] = table[m - 1], -1
        for j in range(values.size):
            if allowed[j] and 0 < parts[j] <= m and values[j] > 0.0 and table[m - parts[j]] + values[j] > table[m]:
                table[m], last[m] = table[m - parts[j]] + values[j], j


@numba.njit(cache=True, nogil=True)
def whole_table(values, gpus, allowed, shared, table, last):
    """table[g] : most value on g free devices, of pods that take whole ones and of shared devices worth `shared` each;
    last[g] : the class put last, -1 for a shared device."""
    table[0], last[0] = 0.0, -1
    for g in range(1, table.size):
        table[g], last[g] = table[g - 1] + shared, -1
        for j in range(values.size):
            if allowed[j] and 0 < gpus[j] <= g and values[j] > 0.0 and table[g - gpus[j]] + values[j] > table[g]:
                table[g], last[g] = table[g - gpus[j]] + values[j], j


@numba.njit(cache=True, nogil=True)
def _device(free, start, stop, pod, cost, freed, table, best, mask):
    """Most value on one shared device that is kept: which of its pods leave (bits), and the parts free then."""
    size = table.size - 1
    best[: size + 1] = np.inf
    best[0] = 0.0
    mask[: size + 1] = 0
    top = 0
    for index in range(start, stop):
        parts, price = freed[index], cost[pod[index]]
        bit = np.int64(1) << np.int64(index - start)
        for m in range(top, -1, -1):
            if best[m] + price < best[m + parts]:
                best[m + parts] = best[m] + price
                mask[m + parts] = mask[m] | bit
        top += parts
    found, chosen, room = -np.inf, np.int64(0), free
    for m in range(top + 1):
        if best[m] < np.inf and table[free + m] - best[m] > found:
            found, chosen, room = table[free + m] - best[m], mask[m], free + m
    return found, chosen, room


@numba.njit(cache=True, nogil=True)
def price_nodes(
    nodes, prices, net, cost, values, costs, request, milli, gpus, parts, wholes, part, group, allowed, free, device,
    fits, left, order, device_start, device_free, device_open, device_index, device_pods, share_pod, share_parts,
    whole_start, whole_pod, bare_start, bare_pod, pod_class, pod_devices, bare_classes,
):  # fmt: skip
    """Bound and best candidates of every node of `nodes`; `prices` [L, R] are the prices of amounts that are tried.

    net [L, J] and cost [L, M] : values of classes and costs of movable pods at these prices.
    Returns ub [n]; worth [n, KEPT] (-1 where there is none); pods removed, and classes added with devices as bits.
    """
    num, num_prices = nodes.size, prices.shape[0]
    most_devices = device.shape[1]
    ub = np.full(num, np.inf)
    worth = np.full((num, KEPT), -1.0)
    removed = np.full((num, KEPT, MOST_BITS), -1, np.int64)
    added = np.full((num, KEPT, MOST_ADDED), -1, np.int64)
    placed = np.zeros((num, KEPT, MOST_ADDED), np.int64)
    size = 1000 // part
    groups = allowed.shape[0]
    share_f = np.zeros((groups, num_prices, size + 1))
    share_last = np.zeros((groups, num_prices, size + 1), np.int64)
    whole_f = np.zeros((groups, num_prices, most_devices + 1))
    whole_last = np.zeros((groups, num_prices, most_devices + 1), np.int64)
    for at in range(num_prices):
        for g in range(groups):
            share_table(net[at], parts, allowed[g], share_f[g, at], share_last[g, at])
            shared = share_f[g, at, size]
            whole_table(net[at], wholes, allowed[g], shared, whole_f[g, at], whole_last[g, at])
    best, mask = np.zeros(2 * size + 2), np.zeros(2 * size + 2, np.int64)
    gain, chain = np.zeros(most_devices + 1), np.zeros(most_devices + 1, np.int64)
    keeps, room = np.zeros(MOST_BITS, np.int64), np.zeros(MOST_BITS, np.int64)
    here = np.zeros(values.size, np.int64)
    out = np.full(MOST_BITS, -1, np.int64)
    new_class, new_bits = np.zeros(MOST_ADDED, np.int64), np.zeros(MOST_ADDED, np.int64)
    want_class, want_bits = np.zeros(MOST_ADDED, np.int64), np.zeros(MOST_ADDED, np.int64)
    for place in range(num):
        s = nodes[place]
        g = group[s]
        first_device, last_device = device_start[s], device_start[s + 1]
        num_whole = 0
        for d in range(most_devices):
            num_whole += device[s, d] == 1000
        for at in range(num_prices):
            total = 0.0
            for r in range(free.shape[1]):
                total += prices[at, r] * free[s, r]
            gain[:] = -np.inf
            gain[0] = 0.0
            chain[:] = 0
            item = 0
            for v in range(first_device, last_device):
                a, b = device_pods[v], device_pods[v + 1]
                found, keeps[item], room[item] = _device(
                    device_free[v], a, b, share_pod, cost[at], share_parts, share_f[g, at], best, mask
                )
                total += found
                if device_open[v]:
                    emptied = -found
                    for index in range(a, b):
                        emptied -= cost[at, share_pod[index]]
                    for n in range(most_devices, 0, -1):
                        if gain[n - 1] + emptied > gain[n]:
                            gain[n] = gain[n - 1] + emptied
                            chain[n] = chain[n - 1] | (np.int64(1) << np.int64(item))
                item += 1
            for index in range(whole_start[s], whole_start[s + 1]):
                p = whole_pod[index]
                count = gpus[pod_class[p]]
                for n in range(most_devices, count - 1, -1):
                    if gain[n - count] - cost[at, p] > gain[n]:
                        gain[n] = gain[n - count] - cost[at, p]
                        chain[n] = chain[n - count] | (np.int64(1) << np.int64(item))
                item += 1
            for index in range(bare_start[s], bare_start[s + 1]):
                total += max(0.0, -cost[at, bare_pod[index]])
            for index in range(bare_classes.size):
                j = bare_classes[index]
                if allowed[g, j] and net[at, j] > 0.0:
                    total += net[at, j] * fits[s, index]
            top, freed = -np.inf, 0
            for n in range(most_devices + 1 - num_whole):
                if gain[n] + whole_f[g, at, num_whole + n] > top:
                    top, freed = gain[n] + whole_f[g, at, num_whole + n], n
            ub[place] = min(ub[place], total + top)
            # Who leaves.
            gone = 0
            shelf = device[s].copy()
            amounts = free[s].copy()
            item, wanted = 0, 0
            for v in range(first_device, last_device):
                emptied = chain[freed] >> np.int64(item) & 1
                for index in range(device_pods[v], device_pods[v + 1]):
                    leaves = keeps[item] >> np.int64(index - device_pods[v]) & 1
                    if (leaves or emptied) and gone < MOST_BITS:
                        out[gone] = share_pod[index]
                        gone += 1
                if not emptied:
                    m = room[item]
                    while m > 0 and wanted < MOST_ADDED:
                        j = share_last[g, at, m]
                        if j < 0:
                            m -= 1
                            continue
                        want_class[wanted], want_bits[wanted] = j, np.int64(1) << device_index[v]
                        wanted += 1
                        m -= parts[j]
                item += 1
            for index in range(whole_start[s], whole_start[s + 1]):
                if chain[freed] >> np.int64(item) & 1 and gone < MOST_BITS:
                    out[gone] = whole_pod[index]
                    gone += 1
                item += 1
            for index in range(bare_start[s], bare_start[s + 1]):
                if cost[at, bare_pod[index]] < 0.0 and gone < MOST_BITS:
                    out[gone] = bare_pod[index]
                    gone += 1
            for index in range(gone):
                p = out[index]
                j = pod_class[p]
                for r in range(amounts.size):
                    amounts[r] += request[j, r]
                for d in range(most_devices):
                    if pod_devices[p] >> np.int64(d) & 1:
                        shelf[d] += milli[j]
            # What comes onto whole devices.
            n, d = num_whole + freed, 0
            while n > 0 and wanted < MOST_ADDED:
                j = whole_last[g, at, n]
                need = 1 if j < 0 else gpus[j]
                bits = np.int64(0)
                have = 0
                while have < need and d < most_devices:
                    if shelf[d] == 1000:
                        bits |= np.int64(1) << np.int64(d)
                        have += 1
                    d += 1
                if have < need:
                    break
                if j >= 0:
                    want_class[wanted], want_bits[wanted] = j, bits
                    wanted += 1
                else:
                    m = size
                    while m > 0 and wanted < MOST_ADDED:
                        k = share_last[g, at, m]
                        if k < 0:
                            m -= 1
                            continue
                        want_class[wanted], want_bits[wanted] = k, bits
                        wanted += 1
                        m -= parts[k]
                n -= need
            # What fits of it, most valuable first, then whatever else still fits.
            here[:] = 0
            new = 0
            value = 0.0
            for first in range(1, wanted):
                j, bits, at_rank = want_class[first], want_bits[first], first
                while at_rank > 0 and values[want_class[at_rank - 1]] < values[j]:
                    want_class[at_rank], want_bits[at_rank] = want_class[at_rank - 1], want_bits[at_rank - 1]
                    at_rank -= 1
                want_class[at_rank], want_bits[at_rank] = j, bits
            for rank in range(wanted):
                j, bits = want_class[rank], want_bits[rank]
                if here[j] < left[j] and new < MOST_ADDED and _takes(amounts, shelf, request[j], milli[j], bits):
                    _put(amounts, shelf, request[j], milli[j], bits)
                    new_class[new], new_bits[new] = j, bits
                    new += 1
                    here[j] += 1
                    value += values[j]
            for j in order:
                if values[j] <= 0.0:
                    break
                if not allowed[g, j]:
                    continue
                while here[j] < left[j] and new < MOST_ADDED:
                    bits = _devices(shelf, gpus[j], milli[j])
                    if bits < 0 or not _takes(amounts, shelf, request[j], milli[j], bits):
                        break
                    _put(amounts, shelf, request[j], milli[j], bits)
                    new_class[new], new_bits[new] = j, bits
                    new += 1
                    here[j] += 1
                    value += values[j]
            # Who need not leave after all.
            stay = 0
            for index in range(gone):
                p = out[index]
                j = pod_class[p]
                if _takes(amounts, shelf, request[j], milli[j], pod_devices[p]):
                    _put(amounts, shelf, request[j], milli[j], pod_devices[p])
                else:
                    out[stay] = p
                    stay += 1
                    value -= costs[p]
            for rank in range(KEPT):
                if abs(value - worth[place, rank]) <= 1e-12 * max(1.0, abs(value)):
                    break
                if value > worth[place, rank] and new > 0:
                    for other in range(KEPT - 1, rank, -1):
                        worth[place, other] = worth[place, other - 1]
                        _copy(removed[place, other], removed[place, other - 1], MOST_BITS)
                        _copy(added[place, other], added[place, other - 1], MOST_ADDED)
                        _copy(placed[place, other], placed[place, other - 1], MOST_ADDED)
                    worth[place, rank] = value
                    _copy(removed[place, rank], out, stay)
                    _copy(added[place, rank], new_class, new)
                    _copy(placed[place, rank], new_bits, new)
                    break
    return ub, worth, removed, added, placed


@numba.njit(cache=True, nogil=True)
def _copy(into, source, count):
    """The first `count` entries; the rest is -1."""
    for index in range(into.size):
        into[index] = source[index] if index < count else -1


@numba.njit(cache=True, nogil=True)
def _takes(amounts, shelf, request, milli, bits):
    """Whether a pod fits, on the devices of `bits`."""
    for r in range(amounts.size):
        if request[r] > amounts[r]:
            return False
    fits = True
    for d in range(shelf.size):
        if bits >> np.int64(d) & 1:
            fits = fits and shelf[d] >= milli
    return fits


@numba.njit(cache=True, nogil=True)
def _put(amounts, shelf, request, milli, bits):
    """Take the room of a pod."""
    for r in range(amounts.size):
        amounts[r] -= request[r]
    for d in range(shelf.size):
        if bits >> np.int64(d) & 1:
            shelf[d] -= milli


@numba.njit(cache=True, nogil=True)
def _devices(shelf, gpus, milli):
    """Devices with the least left that is enough, as bits; -1 where they are too few."""
    bits = np.int64(0)
    for _ in range(gpus):
        best = -1
        for d in range(shelf.size):
            if shelf[d] >= milli and not bits >> np.int64(d) & 1 and (best < 0 or shelf[d] < shelf[best]):
                best = d
        if best < 0:
            return np.int64(-1)
        bits |= np.int64(1) << np.int64(best)
    return bits
