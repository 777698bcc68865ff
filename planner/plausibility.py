"""Numbers that look like a mistake of units. They are told, never changed: an unusual part may be real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from planner.catalog import devices as catalog
from planner.errors import OptionError
from planner.hardware import DeviceKind, Link
from planner.units import GIGA, TERA

#: How far beyond everything in the catalogue a number may lie before it is doubted. Memory and links grow slowly
#: against the 8 of bits and bytes; rates and memory bandwidth may jump, their mistakes are factors of 1000.
NARROW, WIDE = 2.0, 8.0
#: Ratios to a known number that a mistake explains, and how close to them counts.
MISTAKES = ((8.0, "bits taken for bytes?"), (1 / 8, "bytes taken for bits?"), (2.0, "both directions added up?"))
CLOSE = 0.02


def device_notes(kind: DeviceKind) -> tuple[str, ...]:
    """Doubtful numbers of a device, against its base or the catalogued kind of that name and against all kinds."""
    known = [catalog.device(name) for name in catalog.device_names()]
    like = _same_name(kind.base or kind.name, catalog.device)
    found: list[str] = []
    numbers = kind.numbers()
    for name, value in numbers.items():
        rule = _rule(name)
        if rule is None:
            continue
        slack, show = rule
        values = [one.numbers()[name] for one in known if name in one.numbers()]
        label = f"{kind.name}: {name}"
        far = list(_outside(label, value, values, slack, show))
        found += far
        if not far and like is not None and name in like.numbers():
            found += _mistaken(label, value, like.numbers()[name], like.name, show)
    return tuple(found)


def link_notes(link: Link) -> tuple[str, ...]:
    """Doubtful numbers of a link, against the catalogued one of that name and all of its kind."""
    return bandwidth_notes(link.name, link.bandwidth_bytes_per_s, link)


def bandwidth_notes(what: str, value: float, like: Link | None) -> tuple[str, ...]:
    """A bandwidth doubted against a link: the catalogued one of its name, and all that are counted as it is."""
    per, pcie = ("port", False) if like is None else (like.per, like.kind == "pcie")
    known = [catalog.link(name) for name in catalog.link_names()]
    known = [one for one in known if one.per == per and (one.kind == "pcie") == pcie]
    label = f"{what}: bandwidth"
    found = tuple(_outside(label, value, [one.bandwidth_bytes_per_s for one in known], NARROW, _gbyte))
    named = None if like is None else _same_name(like.name, catalog.link)
    if found or named is None:
        return found
    return tuple(_mistaken(label, value, named.bandwidth_bytes_per_s, named.name, _gbyte))


def _rule(name: str) -> tuple[float, Callable[[float], str]] | None:
    if name in ("memory_bytes", "usable_memory_bytes"):
        return NARROW, lambda value: f"{value / GIGA:.4g} GB"
    if name == "scale_up_bandwidth_bytes_per_s":
        return NARROW, _gbyte
    if name in ("hbm_bandwidth_bytes_per_s", "pcie_bandwidth_bytes_per_s"):
        return WIDE, _gbyte
    if name.startswith("flop_per_s."):
        return WIDE, lambda value: f"{value / TERA:.4g} TFLOP/s"
    return (WIDE, lambda value: f"{value:.4g} W") if name == "power_w" else None


def _gbyte(value: float) -> str:
    return f"{value / GIGA:.4g} GB/s"


def _same_name(name: str, find: Callable[[str], catalog.AnyKind]) -> catalog.AnyKind | None:
    try:
        return find(name)
    except OptionError:
        return None


def _outside(
    label: str, value: float, known: Sequence[float], slack: float, show: Callable[[float], str]
) -> Iterator[str]:
    low, high = min(known), max(known)
    if not low / slack <= value <= high * slack:
        hint = "; Gbit/s written as GB/s?" if value > high and show is _gbyte else ""
        range_ = f"{show(low)} to {show(high)}"
        yield f"{label} of {show(value)} is far from all that is known ({range_}): check its unit{hint}"


def _mistaken(label: str, value: float, known: float, name: str, show: Callable[[float], str]) -> Iterator[str]:
    for factor, why in MISTAKES:
        if abs(value / (known * factor) - 1) <= CLOSE:
            yield f"{label} of {show(value)} is {factor:g} times that of {name} ({show(known)}): {why}"
