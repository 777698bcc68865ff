"""`nvidia-smi topo -m` of one node -> the `cluster` of so many nodes like it.

A header line with the names of GPUs and NICs, then one line each with how they are joined: NV# (that many NVLinks),
PIX, PXB, PHB, NODE, SYS (PCIe, from near to far) and X. What follows (affinities, legend) is not read. The command says
nothing about the kind of GPU, which the caller gives. Source: nvidia-smi's own legend, and matrices of A100, H100 and
V100 machines as people publish them; the escape sequences of a terminal are taken off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.cluster import Cluster
from planner.errors import DescriptionError, Finding
from planner.files import SourceText, read_text, validate
from planner.hardware import DeviceKind

MAX_TOPO_BYTES = 2**20
#: GPUs and NICs of a node; the largest have 16 and 18.
MAX_NAMES = 128
#: One NVLink in one direction, bytes/s, by the name of the device's link. Source: NVIDIA's datasheets (P100 and V100 of
#: 20 and 25 GB/s a link, A100 12 x 25, H100 18 x 25, B200 18 x 50).
LINK_BYTES_PER_S: Mapping[str, float] = {
    "NVLink1": 20e9, "NVLink2": 25e9, "NVLink3": 25e9, "NVLink4": 25e9, "NVLink5": 50e9,
}  # fmt: skip
#: Near enough to a GPU to be its own NIC; farther ones are the host's.
NEAR = ("PIX", "PXB")
_GPU, _WORD = re.compile(r"GPU\d{1,3}"), re.compile(r"X|NV\d{1,3}|PIX|PXB|PHB|NODE|SYS|SOC")
_NAME = re.compile(r"(GPU|NIC)\d{1,3}|[a-z]\w{1,30}")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Topo:
    """links : by pair of names, the matrix's word."""

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    links: Mapping[tuple[str, str], str]

    def nvlinks(self, one: str, other: str) -> int:
        """NVLinks between two GPUs; 0 where PCIe joins them."""
        word = self.links[one, other]
        return int(word[2:]) if word.startswith("NV") else 0


def read_topo(path: str | Path) -> Topo:
    """Read the matrix ('-' is standard input). Raises DescriptionError with every bad line."""
    text = _ESCAPE.sub("", read_text(path, MAX_TOPO_BYTES))
    place = "<stdin>" if str(path) == "-" else str(path)
    lines = list(enumerate(text.splitlines(), start=1))
    start = next((index for index, (_, line) in enumerate(lines) if _header(line)), None)
    if start is None:
        raise DescriptionError.single(place, "has no header with GPU0: is this what `nvidia-smi topo -m` prints?")
    names = _header(lines[start][1])
    if len(names) > MAX_NAMES or len(set(names)) < len(names):
        raise DescriptionError.single(place, f"names {len(names)} devices, or one of them twice", lines[start][0])
    findings: list[Finding] = []
    links: dict[tuple[str, str], str] = {}
    seen: set[str] = set()
    for number, line in lines[start + 1 :]:
        words = line.split()
        if not words or words[0] not in names:
            # The legend ends the matrix; so does a blank line.
            if seen:
                break
            continue
        row = words[1 : 1 + len(names)]
        if words[0] in seen:
            findings.append(Finding(place, f"{words[0]} has two lines", number))
        seen.add(words[0])
        bad = [word for word in row if _WORD.fullmatch(word) is None]
        if len(row) < len(names) or bad:
            told = f"{bad[0][:20]!r} is no link" if bad else f"has {len(row)} links for {len(names)} devices"
            findings.append(Finding(place, f"{words[0]}: {told}", number))
            continue
        links |= {(words[0], other): word for other, word in zip(names, row, strict=True)}
    gpus = tuple(name for name in names if _GPU.fullmatch(name))
    findings += [Finding(place, f"{name} has no line") for name in gpus if name not in seen]
    if not findings:
        findings += _asymmetries(gpus, links, place)
    if findings:
        raise DescriptionError(findings)
    return Topo(gpus, tuple(name for name in names if name not in gpus), links)


def _header(line: str) -> list[str]:
    """Names of a header line, none for another: words up to the affinities."""
    words = line.split()
    if "GPU0" not in words[:1]:
        return []
    found = []
    for word in words:
        if _NAME.fullmatch(word) is None:
            break
        found.append(word)
    # The line of GPU0 itself begins so, too; its second word is a link.
    return found if len(words) == len(found) or _WORD.fullmatch(words[len(found)]) is None else []


def _asymmetries(gpus: Sequence[str], links: Mapping[tuple[str, str], str], place: str) -> list[Finding]:
    found = []
    for index, one in enumerate(gpus):
        if links[one, one] != "X":
            found.append(Finding(place, f"{one} to itself is {links[one, one]}, not X"))
        for other in gpus[index + 1 :]:
            if links[one, other] != links[other, one] or links[one, other] == "X":
                found.append(
                    Finding(place, f"{one} to {other} is {links[one, other]}, and back it is {links[other, one]}")
                )
    return found


def topo_cluster(topo: Topo, kind: DeviceKind, count: int, place: str, network: str | None) -> tuple[Any, list[str]]:
    """A cluster of `count` such nodes, and what is told about it.

    Raises DescriptionError for NVLinks that form no groups of one size that are joined throughout.
    """
    groups = _groups(topo, place)
    size = len(groups[0])
    entry: dict[str, Any] = {"device": kind.name, "count": count, "gpus_per_node": len(topo.gpus)}
    entry["scale_up_domain_gpus"] = size
    notes = [f"{len(topo.gpus)} GPUs of a node, in {len(groups)} groups of {size} that NVLink joins"]
    if size == 1:
        notes = [f"{len(topo.gpus)} GPUs of a node, joined by PCIe alone"]
    else:
        bandwidth, told = _bandwidth(topo, groups, kind)
        notes.append(told)
        if bandwidth is not None:
            entry["scale_up_link"] = {
                "name": f"{kind.scale_up_link or 'NVLink'} of this node",
                "bandwidth_bytes_per_s": bandwidth,
                "per": "gpu",
                "source": "nvidia-smi topo -m",
                "confidence": "measured",
            }
    near = [nic for nic in topo.nics if any(topo.links[gpu, nic] in NEAR for gpu in topo.gpus)]
    if near and len(topo.gpus) % len(near) == 0:
        entry["rails"] = len(near)
        notes.append(f"{len(near)} NICs are at a PCIe switch with GPUs: {', '.join(near)}")
    elif topo.nics:
        notes.append(f"{len(near)} of {len(topo.nics)} NICs are near a GPU, which is no even share: one a GPU is taken")
    value: dict[str, Any] = {"nodes": [entry]} | ({} if network is None else {"network": {"link": network}})
    cluster = validate(SourceText(place, "", value, Path.cwd()), Cluster)
    return value, [*notes, *cluster.notes()]


def _groups(topo: Topo, place: str) -> list[list[str]]:
    """GPUs that NVLink joins, each with each, in groups of one size."""
    groups: list[list[str]] = []
    for gpu in topo.gpus:
        own = next((group for group in groups if topo.nvlinks(gpu, group[0])), None)
        if own is None:
            groups.append([gpu])
        else:
            own.append(gpu)
    for group in groups:
        for gpu in topo.gpus:
            joined = sum(topo.nvlinks(gpu, other) > 0 for other in group if other != gpu)
            if joined != (len(group) - 1 if gpu in group else 0):
                message = f"NVLink joins {gpu} to some GPUs and not to others that those are joined to: no group"
                raise DescriptionError.single(place, f"{message} of GPUs that a cluster file can describe")
    if len({len(group) for group in groups}) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        raise DescriptionError.single(place, f"NVLink joins groups of {sizes} GPUs; a cluster file has one size a node")
    return groups


def _bandwidth(topo: Topo, groups: list[list[str]], kind: DeviceKind) -> tuple[float | None, str]:
    """All NVLinks of one GPU, bytes/s, where it is not the catalogue's figure, and what is told of it.

    Behind NVSwitch every pair shows all links of a GPU; joined directly, each pair shows its own.
    """
    one, *others = groups[0]
    counts = [topo.nvlinks(one, other) for other in others]
    words = ", ".join(f"NV{count}" for count in sorted(set(counts)))
    link = next((rate for name, rate in LINK_BYTES_PER_S.items() if kind.scale_up_link.startswith(name)), None)
    known = kind.scale_up_bandwidth_bytes_per_s
    if link is None or known is None:
        return None, f"{words}: the catalogue's bandwidth of {kind.name} is taken"
    whole = round(known / link)
    total = counts[0] if min(counts) == max(counts) == whole else sum(counts)
    if total == whole:
        return None, f"{words}: all {whole} NVLinks of {kind.name}"
    if total > whole:
        return None, f"{words} is more than {kind.name} has ({whole}): is the device right? Its bandwidth is taken"
    return total * link, f"{words}: {total} of the {whole} NVLinks of {kind.name} are in use"
