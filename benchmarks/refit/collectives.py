"""Collectives: three coefficients and a small residual per device, kernel, operation and group; fabrics; dispatch.

Held out: every fourth message size, in four turns; a device, predicted from the others by bandwidth; a node layout.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from benchmarks.refit.common import DATE, LICENCE, SOURCE, mape, read_table
from planner.catalog import device
from planner.cost.collectives.dispatch import DispatchFit, copies
from planner.cost.collectives.inter_node import InterNodeFit, InterNodeLink, hierarchical_seconds
from planner.cost.collectives.links import BYTES_AXIS, CollectiveFit, link_bandwidth, link_for, over_pcie
from planner.cost.operators.grid import FloatArray, fit_grid
from planner.cost.operators.tables import FOLDER, CalibrationFile, Record, Residuals
from planner.files import to_json

VIDUR = "microsoft/vidur @ 7d47513363ec447a741ac5e47241580b47724fbf, data/profiling/network (MIT)"
APEX = "microsoft/apex_plus @ 8769096536a34e8b3010fd444021f13858663a93, profile/comm (MIT)"
OPS = {"alltoall": "all_to_all"}
BYTES_OF = {"half": 2.0, "bfloat16": 2.0, "int8": 1.0}
#: Residuals beyond this count linearly.
SOFT = 0.05
#: Penalties of the residual over message size; 0.1 to 0.3 differ by 0.1 points.
SMOOTH, RIDGE = 0.3, 0.1
TURNS = 4

Key = tuple[str, str, str, int]
Points = tuple[FloatArray, FloatArray]


def non_negative(terms: FloatArray, seconds: FloatArray) -> FloatArray:
    """Coefficients [k] >= 0 of terms [rows, k]: relative errors, robustly."""
    weight = np.ones(len(seconds))
    for _ in range(30):
        scaled = terms / seconds[:, None] * np.sqrt(weight)[:, None]
        unit = np.linalg.norm(scaled, axis=0)
        found = nnls(scaled / unit, np.sqrt(weight))[0] / unit
        weight = 1 / np.sqrt(1 + ((terms @ found / seconds - 1) / SOFT) ** 2)
    return np.asarray(found)


def fit_curve(key: Key, points: Points, bandwidth: float) -> CollectiveFit:
    """One curve; errors are filled in later."""
    message, seconds = points
    terms = np.stack([np.ones_like(message), np.sqrt(message), message], axis=1)
    alpha, root, byte = non_negative(terms, seconds)
    residual = np.log(seconds / (terms @ [alpha, root, byte]))
    grid = fit_grid([BYTES_AXIS], [message], residual, smooth=SMOOTH, ridge=RIDGE)
    name, kernel, op, num_gpus = key
    return CollectiveFit.model_validate(
        {
            "device": name,
            "kernel": kernel,
            "op": op,
            "num_gpus": num_gpus,
            "alpha_s": float(f"{alpha:.4g}"),
            "root_s": float(f"{root:.4g}"),
            "byte_s": float(f"{byte:.4g}"),
            "bandwidth_bytes_per_s": bandwidth,
            "residuals": Residuals.of(grid),
            "rows": len(message),
            "error_in_sample": 0.0,
            "error_held_out": 0.0,
        }
    )


def predicted(fit: CollectiveFit, message: FloatArray, bandwidth: float | None = None) -> FloatArray:
    alpha, grows = fit.parts(message, bandwidth or fit.bandwidth_bytes_per_s)
    return np.asarray((alpha + grows) * np.exp(fit.residuals.grid(message)))


def with_errors(key: Key, points: Points, bandwidth: float) -> CollectiveFit:
    """The fit of all sizes, with its error on them and on sizes left out in turn."""
    message, seconds = points
    fit, out = fit_curve(key, points, bandwidth), np.empty_like(seconds)
    turn = np.unique(message, return_inverse=True)[1] % TURNS
    for one in range(TURNS):
        left = turn == one
        out[left] = predicted(fit_curve(key, (message[~left], seconds[~left]), bandwidth), message[left])
    errors = {"error_in_sample": mape(predicted(fit, message), seconds), "error_held_out": mape(out, seconds)}
    return fit.model_copy(update={name: round(error, 4) for name, error in errors.items()})


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def curves(data: Path) -> dict[Key, Points]:
    """Median seconds by message size; the newest version of each library; all-reduce of 16-bit numbers only.

    An int8 all-reduce adds twice the numbers per byte and is not what engines run.
    """
    columns = read_table(data / "collectives.csv.gz")
    names = ("gpu", "lib", "lib_version", "op", "dtype", "num_gpus", "message_elements", "latency_ms")
    rows = list(zip(*(columns[name].tolist() for name in names), strict=True))
    newest: dict[tuple[str, str], str] = {}
    for gpu, lib, made, *_ in rows:
        newest[gpu, lib] = max(newest.get((gpu, lib), ""), made, key=version)
    found: dict[Key, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for gpu, lib, made, op, dtype, num_gpus, elements, milliseconds in rows:
        if made == newest[gpu, lib] and not (op == "all_reduce" and dtype == "int8"):
            key = (gpu, lib.removeprefix("custom_"), OPS.get(op, op), int(num_gpus))
            found[key][elements * BYTES_OF[dtype]].append(milliseconds * 1e-3)
    for row in read_csv(data / "vidur_collectives.csv"):
        kind = {"a100_dgx": "a100_sxm", "h100_dgx": "h100_sxm"}.get(row["cluster"])
        if kind and row["op"] == "send_recv" and row["devices_per_node"] == "2":
            found[kind, "nccl", "p2p", 2][float(row["size_bytes"])].append(float(row["latency_ms"]) * 1e-3)
    return {key: medians(sizes) for key, sizes in found.items()}


def medians(sizes: dict[float, list[float]]) -> Points:
    order = sorted(sizes)
    return np.array(order), np.array([float(np.median(sizes[size])) for size in order])


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def other_device(fits: Sequence[CollectiveFit], points: dict[Key, Points]) -> Iterator[tuple[str, float]]:
    """Error on each device of the fits of another architecture, the nearest by bandwidth, moved by bandwidth alone."""
    for name in dict.fromkeys(fit.device for fit in fits):
        errors = []
        for fit in fits:
            key = (fit.kernel, fit.op, fit.num_gpus)
            strangers = [
                one
                for one in fits
                if (one.kernel, one.op, one.num_gpus) == key
                and device(one.device).architecture != device(name).architecture
                and over_pcie(device(one.device)) == over_pcie(device(name))
            ]
            if fit.device == name and strangers:
                bandwidth = fit.bandwidth_bytes_per_s
                near = min(strangers, key=lambda one: abs(np.log(one.bandwidth_bytes_per_s / bandwidth)))
                message, seconds = points[fit.device, *key]
                errors.append(mape(predicted(near, message, bandwidth), seconds))
        if errors:
            yield name, float(np.mean(errors))


def fabrics(data: Path) -> list[InterNodeFit]:
    """Fits of the measured networks."""
    points: dict[tuple[str, str, int, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_csv(data / "vidur_collectives.csv"):
        each, workers = int(row["devices_per_node"]), int(row["num_workers"])
        if workers > each:
            key = (row["cluster"], row["op"], workers // each, each)
            points[key][float(row["size_bytes"])].append(float(row["latency_ms"]) * 1e-3)
    for row in read_csv(data / "apex_collectives.csv"):
        if row["num_nodes"] != "1" and row["num_gpus_per_node"] == "1" and row["dtype"] == "half":
            op, size = OPS.get(row["op"], row["op"]), float(row["size_kb"]) * 1024
            if op == "all_reduce" and size > 0:
                points["v100_tcp", op, int(row["num_nodes"]), 1][size].append(float(row["latency_us"]) * 1e-6)
    found = [
        spanning("InfiniBand NDR", "h100_sxm", "p2p", [((2, 1), medians(points["h100_dgx", "send_recv", 2, 1]))], 50e9),
        spanning("InfiniBand", "a100_sxm", "p2p", [((2, 1), medians(points["a100_dgx", "send_recv", 2, 1]))]),
    ]
    layouts = [((n, g), medians(points["a100_dgx", "all_reduce", n, g])) for n, g in ((2, 1), (2, 2), (2, 4), (2, 8))]
    found.append(spanning("InfiniBand", "a100_sxm", "all_reduce", layouts))
    tcp = [((n, 1), medians(points["v100_tcp", "all_reduce", n, 1])) for n in (2, 4)]
    found.append(spanning("Ethernet", "v100_pcie_16gb", "all_reduce", tcp))
    return found


Layout = tuple[tuple[int, int], Points]


def unknowns(op: str, layouts: Sequence[Layout]) -> InterNodeLink:
    """Latency of a step and reached bandwidth, of what is left once the part inside nodes is taken off."""
    terms, rest = [], []
    for (nodes, each), (message, seconds) in layouts:
        # hierarchical_seconds is affine in the latency and in the inverse of the rate.
        inside, step, byte = (
            spanned(op, (nodes, each), message, InterNodeLink(rate, latency, 1.0))
            for rate, latency in ((np.inf, 0.0), (np.inf, 1.0), (1.0, 0.0))
        )
        terms.append(np.stack([step - inside, byte - inside], axis=1))
        rest.append(np.maximum(seconds - inside, 0.05 * seconds))
    latency, byte = non_negative(np.concatenate(terms), np.concatenate(rest))
    return InterNodeLink(float(f"{1 / byte:.4g}"), float(f"{latency:.4g}"), 1.0)


def spanned(op: str, layout: tuple[int, int], message: FloatArray, link: InterNodeLink) -> FloatArray:
    return hierarchical_seconds(op, message, *layout, link_for(device("a100_sxm")), link)


def spanning(fabric: str, name: str, op: str, layouts: Sequence[Layout], nominal: float | None = None) -> InterNodeFit:
    """One fabric; held out are whole layouts, or every fourth size where there is one layout."""

    def error(link: InterNodeLink, one: Layout) -> float:
        return mape(spanned(op, one[0], one[1][0], link), one[1][1])

    link = unknowns(op, layouts)
    if len(layouts) > 1:
        out = [error(unknowns(op, [other for other in layouts if other is not one]), one) for one in layouts]
    else:
        shape, (message, seconds) = layouts[0]
        turn = np.arange(len(message)) % TURNS
        parts = [[(shape, (message[at], seconds[at])) for at in (turn != one, turn == one)] for one in range(TURNS)]
        out = [error(unknowns(op, [seen]), left) for seen, left in parts]
    return InterNodeFit(
        device=name,
        fabric=fabric,
        op=op,
        latency_s=link.latency_s,
        reached_bytes_per_s=link.bandwidth_bytes_per_s,
        nominal_bytes_per_s=nominal,
        rows=sum(len(points[0]) for _, points in layouts),
        error_in_sample=round(float(np.mean([error(link, one) for one in layouts])), 4),
        error_held_out=round(float(np.mean(out)), 4),
    )


def dispatches(data: Path) -> Iterator[DispatchFit]:
    """DeepEP at its best number of SMs, by nodes; the two-sided NVLink all-to-all of NVL72, by GPUs."""
    points: dict[tuple[str, str, int], dict[float, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_csv(data / "moe_alltoall_deepep.csv"):
        if row["gpu"] == "h100_sxm" and row["num_experts"] == "256":  # the h200_sxm rows are copies
            at = points[row["kind"], row["phase"], int(row["node_num"])][float(row["num_token"])]
            at["us"] = min(at.get("us", np.inf), float(row["latency_us"]))
    for row in read_csv(data / "moe_alltoall_gb200_nvl72.csv"):
        phase = row["op_name"].removeprefix("alltoall_")
        if row["kernel_source"] == "NVLinkTwoSided" and row["moe_dtype"] == "bfloat16" and phase != "prepare":
            at = points["nvlink_alltoall", phase, int(row["moe_ep_size"])][float(row["num_tokens"])]
            at["us"] = float(row["latency"]) * 1e3
    for (kind, phase, groups), sizes in points.items():
        tokens = np.array(sorted(sizes))
        seconds = np.array([sizes[count]["us"] for count in tokens]) * 1e-6
        name = "gb200" if kind == "nvlink_alltoall" else "h100_sxm"
        hidden, top_k = 7168.0, 8.0
        token_bytes = hidden * (1.0 if kind != "nvlink_alltoall" and phase == "dispatch" else 2.0)
        if kind == "deepep_low_latency":
            sent = top_k
        elif kind == "deepep_normal":
            sent = float(copies(top_k, 8.0 * groups))
        else:  # timed with balanced routing: every choice on another GPU where there are enough
            sent = min(top_k, float(groups))
        traffic = tokens * token_bytes * sent
        terms = np.stack([np.ones_like(tokens), traffic], axis=1)
        found, out = non_negative(terms, seconds), np.empty_like(seconds)
        for turn in range(TURNS):
            left = np.arange(len(tokens)) % TURNS == turn
            out[left] = terms[left] @ non_negative(terms[~left], seconds[~left])
        yield DispatchFit.model_validate(
            {
                "device": name,
                "kind": kind,
                "phase": phase,
                "groups": groups,
                "alpha_s": float(f"{found[0]:.4g}"),
                "byte_s": float(f"{found[1]:.4g}"),
                "bandwidth_bytes_per_s": link_bandwidth(device(name)),
                "rows": len(tokens),
                "error_in_sample": round(mape(terms @ found, seconds), 4),
                "error_held_out": round(mape(out, seconds), 4),
            }
        )


def save(topic: str, kind: type[Record], found: Sequence[Record], source: str, licence: str, method: str) -> None:
    document = CalibrationFile[kind](  # type: ignore[valid-type]
        topic=topic, date=DATE, source=source, licence=licence, method=method, records=tuple(found)
    )
    (FOLDER / f"{topic}.json").write_text(to_json(document), encoding="utf-8")


def held_out(data: Path) -> list[tuple[str, float]]:
    """Error on message sizes left out, by device, kernel and operation."""
    by_table: dict[str, list[float]] = defaultdict(list)
    for key, points in curves(data).items():
        one = with_errors(key, points, link_bandwidth(device(key[0])))
        by_table[f"{one.device} {one.kernel} {one.op}"].append(one.error_held_out)
    return [(name, float(np.mean(errors))) for name, errors in by_table.items()]


def main(data: Path, *, write: bool) -> None:
    """Fit everything, print the errors, and write the catalogue's files if asked."""
    points = curves(data)
    fits = [with_errors(key, curve, link_bandwidth(device(key[0]))) for key, curve in points.items()]
    print(f"{'device':20} {'kernel':13} {'operation':15} {'rows':>5} {'seen':>7} {'sizes out':>9}")
    tables: dict[tuple[str, str, str], list[CollectiveFit]] = defaultdict(list)
    for one in fits:
        tables[one.device, one.kernel, one.op].append(one)
    for (name, kernel, op), group in tables.items():
        seen, out = (np.mean([getattr(one, f"error_{which}") for one in group]) for which in ("in_sample", "held_out"))
        print(f"{name:20} {kernel:13} {op:15} {sum(one.rows for one in group):5} {seen:7.1%} {out:9.1%}")
    seen, out = (np.mean([getattr(one, f"error_{which}") for one in fits]) for which in ("in_sample", "held_out"))
    print(f"all: seen {seen:.1%}, sizes out {out:.1%}")
    for name, error in other_device(fits, points):
        print(f"{name:20} from the nearest device of another architecture {error:7.1%}")
    if write:
        method = "alpha + root sqrt(s) + byte s, non-negative, and a residual over log2 s; held out: every fourth size"
        save("collectives", CollectiveFit, fits, f"{SOURCE}/<gpu>/comm; p2p: {VIDUR}", f"{LICENCE}; p2p: MIT", method)
    networks = fabrics(data)
    for network in networks:
        print(
            f"{network.device:14} {network.fabric:15} {network.op:11} {network.latency_s * 1e6:6.1f} us"
            f" {network.reached_bytes_per_s / 1e9:6.2f} GB/s {network.error_in_sample:7.1%}"
            f" {network.error_held_out:7.1%}"
        )
    moved = list(dispatches(data))
    for one in moved:
        print(
            f"{one.kind:19} {one.phase:22} {one.groups:3} {one.alpha_s * 1e6:6.1f} us {1e-9 / one.byte_s:7.1f} GB/s"
            f" {one.error_in_sample:7.1%} {one.error_held_out:7.1%}"
        )
    if write:
        save(
            "inter_node",
            InterNodeFit,
            networks,
            f"{VIDUR}; {APEX}",
            "MIT",
            "steps latency + traffic / reached bandwidth",
        )
        where = f"{SOURCE}/h100_sxm/comm/sglang/0.5.6.post2 and gb200/comm/trtllm/1.3.0rc10"
        save(
            "dispatch",
            DispatchFit,
            moved,
            where,
            LICENCE,
            "alpha + copies byte_s; held out: every fourth number of tokens",
        )
