"""Serving predictions against measured runs: held out by family and by device, peers on the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.common import Row
from benchmarks.silicon import held_out, left_out, silicon, unmarked
from planner.cost.serving.calibrate import calibrate, some_runs
from planner.cost.serving.intervals import COVERAGE, conformal_factor, coverage

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PEER = "AIConfigurator 0.12.0, same rows"


def _mape(predicted: FloatArray, measured: FloatArray) -> float:
    return 100.0 * float(np.abs(predicted / measured - 1.0).mean())


def _peer(what: str) -> FloatArray:
    """The peer's predictions, seconds; NaN where it refused."""
    cells = silicon().cells[f"aic_{what}_ms"]
    return np.array([float(cell) / 1e3 if cell else np.nan for cell in cells])


def tpot(short: bool) -> Iterator[Row]:
    """Time per output token, without the row's model family or its device."""
    yield from _held_out("tpot")


def ttft(short: bool) -> Iterator[Row]:
    """Time to first token, blind, and with a level from the group's other runs."""
    yield from _held_out("ttft")
    yield from _levels()


def _held_out(what: str) -> Iterator[Row]:
    data = silicon()
    measured = data.runs.tpot_s if what == "tpot" else data.runs.ttft_s
    peer = _peer(what)
    answered = np.isfinite(peer)
    for by in ("family", "device"):
        predicted = held_out(by)[0 if what == "tpot" else 1]
        blind = held_out(by, unmarked)[0 if what == "tpot" else 1]
        case = f"{what}, one {by} left out"
        everything = np.ones_like(answered)
        parts: tuple[tuple[str, FloatArray, BoolArray], ...] = (
            ("distinct clean runs", predicted, data.clean),
            ("dense", predicted, data.clean & data.dense),
            ("MoE", predicted, data.clean & ~data.dense),
            ("all rows", predicted, everything),
        )
        if what == "tpot":
            parts += (("all rows, MTP not marked", blind, everything),)
        for name, values, part in parts:
            yield Row(case, f"MAPE, {name}", _mape(values[part], measured[part]), None, "", "%", "lower")
        both = answered & data.clean
        yield Row(
            case,
            "MAPE, clean rows the peer answers",
            _mape(predicted[both], measured[both]),
            _mape(peer[both], measured[both]),
            PEER,
            "%",
            "lower",
        )
        share = 100.0 * float(np.isfinite(predicted).mean())
        yield Row(case, "rows answered", share, 100.0 * float(answered.mean()), PEER, "%", "higher")


def residuals(short: bool) -> Iterator[Row]:
    """Where the TPOT error lies: by model family, device and backend, one family left out."""
    data = silicon()
    predicted, _ = held_out("family")
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index in np.flatnonzero(data.clean).tolist():
        groups[data.family[index], data.device[index], data.cells["backend"][index]].append(index)
    for (family, device, backend), members in sorted(groups.items()):
        case = f"{family} {device} {backend}"
        yield Row(case, "MAPE", _mape(predicted[members], data.runs.tpot_s[members]), None, "", "%", "lower")
        bias = 100.0 * float(np.expm1(np.log(predicted[members] / data.runs.tpot_s[members]).mean()))
        yield Row(case, "bias", bias, None, "", "%", "lower")


def _levels() -> Iterator[Row]:
    """TTFT with the level of a run group taken from half of its runs and scored on the other half."""
    data = silicon()
    _, predicted = held_out("family")
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in np.flatnonzero(data.clean).tolist():
        groups[data.group[index]].append(index)
    random = np.random.default_rng(0)
    errors: list[float] = []
    for members in groups.values():
        shuffled = random.permutation(members)
        halves = shuffled[::2], shuffled[1::2]
        for known, asked in (halves, halves[::-1]):
            ratio = data.runs.ttft_s / predicted
            # Shrunk towards none: a level says as much as its runs, of which each is 25 % off and groups are 40 %.
            level = np.exp(np.log(ratio[known]).sum() / (len(known) + (0.25 / 0.40) ** 2)) if len(known) else 1.0
            errors += np.abs(predicted[asked] * level / data.runs.ttft_s[asked] - 1.0).tolist()
    yield Row(
        "ttft, one family left out", "MAPE, group level known", 100 * float(np.mean(errors)), None, "", "%", "lower"
    )


def calibration(short: bool) -> Iterator[Row]:
    """After one and five of a user's own runs of a cluster, on the rest of it; its family left out of the fit."""
    data = silicon()
    random = np.random.default_rng(0)
    errors: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _, test, base in left_out(data.family):
        clusters: dict[object, list[int]] = defaultdict(list)
        for index in np.flatnonzero(test & data.clean).tolist():
            clusters[data.runs.cluster[index]].append(index)
        for members in clusters.values():
            for _ in range(1 if short else 4):
                order = random.permutation(members)
                for count in (0, 1, 5):
                    if len(order) <= 6:
                        continue
                    known = base if not count else calibrate(some_runs(data.runs, order[:count]), base)[0]
                    rest = some_runs(data.runs, order[count:])
                    found = rest.model.with_coefficients(known).predict(rest.plans)
                    errors[count, "tpot"] += np.abs(found.tpot_s / rest.tpot_s - 1.0).tolist()
                    errors[count, "ttft"] += np.abs(found.ttft_s / rest.ttft_s - 1.0).tolist()
    for (count, what), found_errors in sorted(errors.items()):
        measure = f"{what} MAPE after {count} own runs"
        yield Row("gpuplan calibrate", measure, 100.0 * float(np.mean(found_errors)), None, "", "%", "lower")


def intervals(short: bool) -> Iterator[Row]:
    """Coverage of 80 % intervals whose width comes from other families."""
    data = silicon()
    for what, predicted, measured in zip(
        ("tpot", "ttft"), held_out("family"), (data.runs.tpot_s, data.runs.ttft_s), strict=True
    ):
        inside: list[float] = []
        for family in sorted(set(data.family.tolist())):
            own = data.clean & (data.family == family)
            hits = 0.0
            for kind in (data.dense, ~data.dense):
                part, others = own & kind, data.clean & (data.family != family) & kind
                if part.any():
                    factor = conformal_factor(predicted[others], measured[others])
                    hits += coverage(predicted[part], measured[part], factor) * float(part.sum())
            inside.append(hits)
            yield Row(
                f"{what} intervals", f"coverage, {family}", 100 * hits / float(own.sum()), 80.0, "asked", "%", "higher"
            )
        pool = 100.0 * sum(inside) / float(data.clean.sum())
        yield Row(f"{what} intervals", "coverage, pool", pool, 100.0 * COVERAGE, "asked", "%", "higher")


#: Limits of the choices, as multiples of the smallest measured TPOT of a group: tight to loose.
LIMITS = np.array([1.3, 2.0, 3.0, 5.0])
#: A choice breaks its limit when the measured TPOT is more than this above it.
TOLERANCE = 1.05


#: Predictions count this much longer against a limit: what the searches do too, because an error near the limit costs
#: more than one elsewhere.
MARGIN = 1.05


def choices(short: bool) -> Iterator[Row]:
    """Highest tokens/s/GPU under a TPOT limit among measured runs of a group, chosen from predictions."""
    data = silicon()
    predicted, _ = held_out("family")
    peer = _peer("tpot")
    both = np.isfinite(peer)
    rate = data.runs.plans.concurrency / np.array([w.num_gpus for w in data.runs.model.workers])[data.runs.plans.worker]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in np.flatnonzero(data.clean & both):
        groups[data.group[index]].append(index)
    for margin, name in ((1.0, "no margin"), (MARGIN, f"{MARGIN - 1:.0%} margin, both")):
        ours, theirs = (
            _choice(groups.values(), rate, values * margin, data.runs.tpot_s) for values in (predicted, peer)
        )
        case = f"{int(ours[2])} choices under a TPOT limit"
        yield Row(case, f"regret, {name}", 100 * ours[0], 100 * theirs[0], PEER, "%", "lower")
        yield Row(case, f"limits broken by over 5 %, {name}", ours[1], theirs[1], PEER, "count", "lower")


def _choice(
    groups: Iterable[list[int]], rate: FloatArray, predicted: FloatArray, measured: FloatArray
) -> tuple[float, float, float]:
    """Mean loss of measured throughput against the best choice, broken limits, choices.

    A choice that breaks its limit is worth what the best run within it would be at most.
    """
    losses, broken = [], 0
    for group in groups:
        members = np.array(group)
        throughput = rate[members] / measured[members]
        for limit in LIMITS * measured[members].min():
            allowed = measured[members] <= limit
            hoped = predicted[members] <= limit
            if not hoped.any():
                hoped = predicted[members] == predicted[members].min()
            guess = np.where(hoped, rate[members] / predicted[members], -1.0)
            chosen = int(guess.argmax())
            best = float(throughput[allowed].max())
            if measured[members][chosen] > TOLERANCE * limit:
                broken += 1
            losses.append(max(0.0, 1.0 - min(float(throughput[chosen]), best) / best))
    return float(np.mean(losses)), float(broken), float(len(losses))
