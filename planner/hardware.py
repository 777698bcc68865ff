"""Accelerators, links and node shapes: numbers in SI units, each with its source and how far to trust it.

The catalogue's files and a user's own entries are the same three descriptions. A user writes a whole datasheet, or
`base: h100_sxm` and the numbers that differ; those are then marked as the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from planner.descriptions.base import Description, Problem
from planner.errors import DescriptionError, OptionError
from planner.units import Bytes, BytesPerSecond, FlopPerSecond, Seconds, Watts

#: measured: read from a running system. datasheet: the vendor's published value. modelled: derived, typical, from a
#: secondary source, or disputed.
Confidence = Literal["measured", "datasheet", "modelled"]
#: Arithmetic formats that matrix units run.
Dtype = Literal["bf16", "fp16", "fp8", "int8", "fp4"]

#: Where a number comes from when a user gives it without a source.
USER = "user"

NonEmpty = Annotated[str, Field(min_length=1)]
PositiveBytes = Annotated[Bytes, Field(gt=0)]
PositiveWatts = Annotated[Watts, Field(gt=0)]


class Fact(Description):
    """Where one number comes from. What is left out is said by the description that the number belongs to."""

    source: NonEmpty | None = None
    confidence: Confidence | None = None
    note: Annotated[str, Field(description="disagreements and conditions")] = ""


class Sourced(Description):
    """A description whose numbers all have a source: one for all, and `facts` for those that differ."""

    source: NonEmpty = USER
    confidence: Confidence = "datasheet"
    facts: Annotated[
        dict[str, Fact], Field(description="by number, as hbm_bandwidth_bytes_per_s or flop_per_s.fp8")
    ] = Field(default_factory=dict)
    note: Annotated[str, Field(description="about all of it")] = ""

    def numbers(self) -> dict[str, float]:
        """Every number that is known, by name, SI units; those of a table as `flop_per_s.fp8`."""
        found: dict[str, float] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int | float):
                found[name] = value
            elif isinstance(value, Mapping) and name != "facts":
                found |= {f"{name}.{key}": one for key, one in value.items()}
        return found

    def fact(self, number: str) -> Fact:
        """Source and confidence of one number; KeyError for one that is not known."""
        if number not in self.numbers():
            raise KeyError(number)
        own = self.facts.get(number, Fact())
        return Fact(source=own.source or self.source, confidence=own.confidence or self.confidence, note=own.note)

    def problems(self) -> Iterator[Problem]:
        """A fact is about a number that is there."""
        for number in sorted(set(self.facts) - set(self.numbers())):
            yield ("facts", number), f"no such number here; known: {', '.join(self.numbers())}"


class DeviceKind(Sourced):
    """One kind of accelerator. Rates are dense (no 2:4 sparsity) peaks; bandwidths are in one direction.

    `memory_bytes` is the size that it is sold as, which vendors round in their own ways (the 80 GB of an H100 are
    79.6 GiB); `usable_memory_bytes` is what the driver reports, where that is known.
    `flop_per_s` holds only the formats that the matrix units run.
    """

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["base"]}, {"required": ["name", "memory_bytes"]}], "required": []}
    )

    name: NonEmpty
    base: Annotated[NonEmpty | None, Field(description="catalogued kind whose numbers hold where none is given")] = None
    vendor: str = ""
    architecture: str = ""
    form: Annotated[str, Field(description="SXM5, PCIe, OAM, ...")] = ""
    compute_capability: Annotated[str, Field(description="9.0 for Hopper; gfx942 for CDNA3")] = ""
    aliases: Annotated[
        tuple[NonEmpty, ...], Field(description="other names, Kubernetes product labels among them")
    ] = ()
    memory_bytes: PositiveBytes
    usable_memory_bytes: PositiveBytes | None = None
    hbm_bandwidth_bytes_per_s: BytesPerSecond
    flop_per_s: Annotated[dict[Dtype, FlopPerSecond], Field(min_length=1, description="dense peak by format")]
    scale_up_link: Annotated[str, Field(description="NVLink4, Infinity Fabric, ...")] = ""
    scale_up_bandwidth_bytes_per_s: Annotated[
        BytesPerSecond | None, Field(description="all links of one GPU, one direction")
    ] = None
    scale_up_domain_gpus: Annotated[PositiveInt, Field(description="GPUs that these links join at most")] = 1
    pcie_bandwidth_bytes_per_s: Annotated[BytesPerSecond | None, Field(description="to the host, one direction")] = None
    power_w: Annotated[PositiveWatts | None, Field(description="limit of the board")] = None

    @model_validator(mode="before")
    @classmethod
    def _take_over_base(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if isinstance(data.get("aliases"), list):
            # After a validator of the raw input, strict pydantic no longer takes a JSON array as a tuple.
            data = {**data, "aliases": tuple(data["aliases"])}
        if not isinstance(data.get("base"), str):
            return data
        from planner.catalog.devices import device

        try:
            base = device(data["base"])
        except OptionError as error:
            raise ValueError(f"base: {error}") from None
        return _over(base, data)

    @property
    def known_memory_bytes(self) -> float:
        """What the driver reports where that is known, else the size it is sold as."""
        return self.memory_bytes if self.usable_memory_bytes is None else self.usable_memory_bytes

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense peak rate of a format, FLOP/s. DescriptionError when the matrix units do not run it."""
        for known, rate in self.flop_per_s.items():
            if known == dtype:
                return rate
        raise DescriptionError.single(
            self.name, f"has no matrix units for {dtype}; it runs {', '.join(self.flop_per_s)}"
        )

    def problems(self) -> Iterator[Problem]:
        """A domain of several GPUs needs a bandwidth."""
        yield from super().problems()
        if self.scale_up_domain_gpus > 1 and self.scale_up_bandwidth_bytes_per_s is None:
            yield ("scale_up_domain_gpus",), "needs scale_up_bandwidth_bytes_per_s"


def _over(base: DeviceKind, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `base` under those of `changes`, whose numbers are marked with the source that `changes` gives."""
    merged = base.model_dump(exclude={"base"})
    merged |= {key: value for key, value in changes.items() if key not in ("source", "confidence", "facts")}
    if changes.get("name", base.name) != base.name:
        merged["aliases"] = changes.get("aliases", ())
    numbers = set(base.numbers())
    changed = {key for key in changes if key in DeviceKind.model_fields}
    own = changes.get("flop_per_s")
    if isinstance(own, Mapping):
        # Formats that are not given stay as they are.
        merged["flop_per_s"] = {**base.flop_per_s, **own}
        changed = changed - {"flop_per_s"} | {f"flop_per_s.{dtype}" for dtype in own}
    told = {"source": changes.get("source", USER), "confidence": changes.get("confidence", "datasheet")}
    marked = {key: told for key in changed if key in numbers or "." in key or key.endswith(("_s", "_bytes", "_w"))}
    merged["facts"] = {**merged["facts"], **marked, **changes.get("facts", {})}
    if "memory_bytes" in changes and "usable_memory_bytes" not in changes:
        merged["usable_memory_bytes"] = None
        merged["facts"].pop("usable_memory_bytes", None)
    return merged


class Link(Sourced):
    """One kind of link. A network link is counted per port, or for a whole node where a cloud sells it so."""

    name: NonEmpty
    kind: Annotated[str, Field(description="nvlink, xgmi, c2c, pcie, ib, roce, efa, tcp, ...")] = ""
    aliases: tuple[NonEmpty, ...] = ()
    bandwidth_bytes_per_s: Annotated[BytesPerSecond, Field(description="one direction")]
    per: Annotated[Literal["gpu", "port", "node"], Field(description="what the bandwidth is of")] = "port"
    latency_s: Annotated[Seconds | None, Field(description="one way, end to end; left out: not known")] = None
    scope: Annotated[str, Field(description="what it joins")] = ""


class NodeShape(Sourced):
    """A server as it is rented or sold."""

    name: NonEmpty
    provider: str = ""
    aliases: tuple[NonEmpty, ...] = ()
    device: NonEmpty
    gpus: PositiveInt
    vcpus: PositiveInt
    host_memory_bytes: PositiveBytes
    nic_bandwidth_bytes_per_s: Annotated[BytesPerSecond, Field(description="all ports of the node, one direction")]
    host_nic_bandwidth_bytes_per_s: Annotated[
        BytesPerSecond | None, Field(description="the part of it that is for the host, not for GPUs")
    ] = None
    scale_up_domain_gpus: PositiveInt

    @property
    def gpu_nic_bandwidth_bytes_per_s(self) -> float:
        """What the ports for GPUs carry together, one direction."""
        return self.nic_bandwidth_bytes_per_s - (self.host_nic_bandwidth_bytes_per_s or 0.0)
