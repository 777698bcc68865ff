"""GPUs as price lists name them -> devices of the catalogue.

The name says the family (A100), the memory which of its sizes (40 or 80 GB), and the name or the instance type which
form (SXM, PCIe, NVL). What leaves two sizes open is refused, never guessed; where nothing says the form, it is the one
that the catalogue understands the bare name as.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache

from planner import catalog
from planner.catalog.devices import folded
from planner.errors import OptionError
from planner.hardware import DeviceKind

#: A memory is that of a device when it is this many times the catalogue's: lists mix up GB and GiB (1.074), drivers
#: show a little less, and a B200 is sold with 180 and with 192 GB.
LEAST_MEMORY, MOST_MEMORY = 0.9, 1.16
#: Instance types whose form no name says. Sources: Microsoft's announcement of NC A100 v4 (A100 80 GB PCIe); the
#: product name that the driver reports on NCv3 (Tesla V100-PCIE-16GB).
INSTANCE_DEVICES: Mapping[str, str] = {
    r"standard_nc\d+ads_a100_v4": "a100_pcie",
    r"standard_nc\d+r?s_v3": "v100_pcie_16gb",
}
_VENDOR = re.compile(r"(?:nvidia|amd|intel|tesla|geforce|instinct)[\s_-]+", re.IGNORECASE)
_FORM = re.compile(r"sxm|pcie|nvl")
_NO_FAMILY = re.compile(r"_(?:sxm|pcie|nvl|\d+gb)(?![a-z0-9])")


@cache
def _families() -> Mapping[str, tuple[DeviceKind, ...]]:
    kinds: dict[str, list[DeviceKind]] = {}
    for name in catalog.device_names():
        kinds.setdefault(_family(name), []).append(catalog.device(name))
    return {family: tuple(members) for family, members in kinds.items()}


def _family(device: str) -> str:
    """What a device's name says without form and memory: a100_sxm_40gb -> a100."""
    return _NO_FAMILY.sub("", device)


@lru_cache(4_096)
def _named(name: str) -> DeviceKind | None:
    """What the catalogue understands a name as, with or without the vendor before it."""
    for text in (name, _VENDOR.sub("", name)):
        try:
            return catalog.device(text)
        except OptionError:
            continue
    return None


def family_of(name: str) -> str | None:
    """Family of a GPU's name; None for one that the catalogue does not have."""
    kind = _named(name)
    return None if kind is None else _family(kind.name)


def devices_meant(name: str) -> frozenset[str]:
    """Devices that a user's word asks for: a whole family (h100), or one of them (h100_nvl). OptionError for others."""
    members = _families().get(folded(name))
    return frozenset(kind.name for kind in members) if members else frozenset({catalog.device(name).name})


@lru_cache(4_096)
def find_device(gpu: str, memory_gb: float | None = None, instance: str = "") -> DeviceKind:
    """The device that a row of a price list rents.

    memory_gb : of one GPU, in GB or GiB. instance : the instance type, whose form and device may be known.
    OptionError: a GPU or memory that the catalogue does not have, a memory that is needed and missing, an instance
    type that has another device.
    """
    named = _named(gpu)
    if named is None:
        return catalog.device(gpu)  # raises, with near names
    members = _families()[_family(named.name)]
    sold = _sold(instance)
    if sold is not None and sold not in members:
        raise OptionError(f"{instance} has {sold.name} in the catalogue, not {gpu}")
    if memory_gb is not None:
        fitting = tuple(kind for kind in members if _fits(kind, memory_gb))
        if not fitting:
            sizes = ", ".join(f"{kind.name} {kind.memory_bytes / 1e9:g}" for kind in members)
            raise OptionError(f"{gpu} with {memory_gb:g} GB is not in the catalogue, which has (GB): {sizes}")
    elif folded(gpu) == folded(named.name) or re.search(r"\d\s*gb?\b", gpu, re.IGNORECASE):
        fitting = (named,)
    else:
        fitting = members
    if sold is not None:
        if sold not in fitting:
            raise OptionError(
                f"{instance} has {sold.name} in the catalogue, which does not fit {gpu} {memory_gb or ''}"
            )
        return sold
    form = _FORM.search(folded(gpu)) or _FORM.search(folded(instance))
    if form is not None:
        fitting = tuple(kind for kind in fitting if form[0] in kind.name) or fitting
    if named in fitting and (memory_gb is not None or len(_sizes_like(named, fitting)) == 1):
        return named
    alike = _sizes_like(named, fitting) or fitting
    if len(alike) == 1:
        return alike[0]
    names = ", ".join(sorted(kind.name for kind in fitting))
    raise OptionError(f"{gpu} may be any of {names}; give the memory of a GPU, or one of these names")


def _sizes_like(named: DeviceKind, kinds: tuple[DeviceKind, ...]) -> tuple[DeviceKind, ...]:
    """Those of the same form."""
    return tuple(kind for kind in kinds if kind.form == named.form)


def _fits(kind: DeviceKind, memory_gb: float) -> bool:
    return LEAST_MEMORY <= memory_gb / (kind.memory_bytes / 1e9) <= MOST_MEMORY


def _sold(instance: str) -> DeviceKind | None:
    """Device of an instance type that is known; None for others."""
    for pattern, device in INSTANCE_DEVICES.items():
        if re.fullmatch(pattern, instance.lower()):
            return catalog.device(device)
    try:
        return catalog.device(catalog.node(instance.removeprefix("Standard_")).device)
    except OptionError:
        return None
