"""Annealing of the orders of passes: one pass of a device moves a few places; all start times follow.

An order is a word of letters (pass, chunk): the n-th letter of a kind stands for the n-th micro-batch, so equal passes
never overtake each other and a word has no symmetric twin. A move takes a letter out and puts it back up to REACH
places away. It is priced exactly: earliest times forwards, latest times backwards, memory as the word goes. It is
refused where devices would wait for one another or run out of memory.
"""

from __future__ import annotations

import math

import numpy as np

from formulations.expert_placement.kernels import compiled, draw, start_random
from formulations.parallelism.training.schedule.problem import SchedulePlan, ScheduleProblem, Task, span_s, timed

#: Places that a letter moves at most.
REACH = 12
#: Temperatures of the first and the last move, as shares of the span; ten times hotter is no better.
HOT, COLD = 3e-3, 1e-4
#: Weight of the mean of the devices' spans, which tells apart words of the same longest one.
TIE = 0.02


@compiled
def priced(words, device, pass_s, send_s, until_backward, until_weight, capacity, end, late, sequence):
    """Longest span of the devices plus TIE of the mean; infinite where the words cannot run.

    words [D, L] hold letters kind * C + chunk, -1 after the last; end, late [3, C, m] and sequence [3 C m] are room to
    work in.
    """
    devices, length = words.shape
    chunks, micro = device.size, end.shape[2]
    count = np.zeros((3, chunks), np.int64)
    place = np.zeros(devices, np.int64)
    free = np.zeros(devices)
    held = np.zeros(devices)
    done = 0
    moved = True
    while moved:
        moved = False
        for d in range(devices):
            while place[d] < length and words[d, place[d]] >= 0:
                letter = words[d, place[d]]
                kind, chunk = letter // chunks, letter % chunks
                i = count[kind, chunk]
                if kind == 0:
                    ready = 0.0
                    if chunk > 0:
                        if count[0, chunk - 1] <= i:
                            break
                        ready = end[0, chunk - 1, i] + send_s[chunk - 1]
                    held[d] += until_backward[chunk] + until_weight[chunk]
                    if held[d] > capacity[d]:
                        return np.inf
                elif kind == 1:
                    if chunk == chunks - 1:
                        if count[0, chunk] <= i:
                            break
                        ready = end[0, chunk, i]
                    else:
                        if count[1, chunk + 1] <= i:
                            break
                        ready = end[1, chunk + 1, i] + send_s[chunk]
                    held[d] -= until_backward[chunk]
                else:
                    if count[1, chunk] <= i:
                        return np.inf
                    ready = end[1, chunk, i]
                    held[d] -= until_weight[chunk]
                free[d] = max(free[d], ready) + pass_s[kind, chunk]
                end[kind, chunk, i] = free[d]
                count[kind, chunk] += 1
                sequence[done] = letter * micro + i
                done += 1
                place[d] += 1
                moved = True
    if done < 3 * chunks * micro:
        return np.inf
    last = free.copy()
    late[:] = np.inf
    for step in range(done - 1, -1, -1):
        letter, i = sequence[step] // micro, sequence[step] % micro
        kind, chunk = letter // chunks, letter % chunks
        d = device[chunk]
        start = min(free[d], late[kind, chunk, i]) - pass_s[kind, chunk]
        free[d] = start
        if kind == 2:
            late[1, chunk, i] = min(late[1, chunk, i], start)
        elif kind == 0:
            if chunk > 0:
                late[0, chunk - 1, i] = min(late[0, chunk - 1, i], start - send_s[chunk - 1])
        elif chunk == chunks - 1:
            late[0, chunk, i] = min(late[0, chunk, i], start)
        else:
            late[1, chunk + 1, i] = min(late[1, chunk + 1, i], start - send_s[chunk])
    longest, total = 0.0, 0.0
    for d in range(devices):
        longest = max(longest, last[d] - free[d])
        total += last[d] - free[d]
    return longest + TIE * total / devices


@compiled
def move(words, d, source, target):
    """Take the letter at `source` out and put it at `target`."""
    letter = words[d, source]
    step = 1 if target > source else -1
    for place in range(source, target, step):
        words[d, place] = words[d, place + step]
    words[d, target] = letter


@compiled
def anneal(
    words, lengths, device, pass_s, send_s, until_backward, until_weight, capacity, micro, moves, hot, cold, seed
):
    """Best words found in so many moves, from `words`, which are left at the last ones."""
    state = start_random(seed)
    chunks = device.size
    end, late = np.zeros((3, chunks, micro)), np.zeros((3, chunks, micro))
    sequence = np.zeros(3 * chunks * micro, np.int64)
    value = priced(words, device, pass_s, send_s, until_backward, until_weight, capacity, end, late, sequence)
    best, best_value = words.copy(), value
    heat, cooling = hot, (cold / hot) ** (1.0 / max(moves, 1))
    for _ in range(moves):
        heat *= cooling
        d = int(draw(state) * words.shape[0])
        source = int(draw(state) * lengths[d])
        reach = 1 + int(draw(state) * REACH)
        target = source + reach if draw(state) < 0.5 else source - reach
        if target < 0 or target >= lengths[d] or words[d, source] == words[d, target]:
            continue
        move(words, d, source, target)
        after = priced(words, device, pass_s, send_s, until_backward, until_weight, capacity, end, late, sequence)
        if after <= value or draw(state) < math.exp((value - after) / heat):
            value = after
            if value < best_value:
                best_value = value
                best[:] = words
        else:
            move(words, d, target, source)
    return best


def annealed(problem: ScheduleProblem, plan: SchedulePlan, moves: int, seed: int) -> SchedulePlan:
    """The plan, or a shorter one found from it in so many moves."""
    lengths = np.array([len(tasks) for tasks in plan.order])
    words = np.full((len(lengths), lengths.max()), -1, dtype=np.int64)
    for device, tasks in enumerate(plan.order):
        words[device, : len(tasks)] = [kind * problem.num_chunks + chunk for kind, chunk, _ in tasks]
    span = span_s(problem, plan)
    found = anneal(
        words,
        lengths,
        problem.device.astype(np.int64),
        problem.pass_s.astype(np.float64),
        problem.send_s.astype(np.float64),
        problem.until_backward_bytes.astype(np.float64),
        problem.until_weight_bytes.astype(np.float64),
        # Sums of bytes in another order differ in the last digits.
        problem.capacity_bytes * (1 + 1e-9),
        problem.micro_batches,
        moves,
        HOT * span,
        COLD * span,
        seed,
    )
    order: list[list[Task]] = []
    for device, length in enumerate(lengths.tolist()):
        seen = [0] * (3 * problem.num_chunks)
        word: list[Task] = []
        for letter in found[device, :length].tolist():
            word.append((letter // problem.num_chunks, letter % problem.num_chunks, seen[letter]))
            seen[letter] += 1
        order.append(word)
    better = timed(problem, order)
    return better if span_s(problem, better) < span * (1 - 1e-12) else plan
