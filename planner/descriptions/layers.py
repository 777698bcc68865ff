"""The `layers` instances: one model cut over unequal devices, as pipelines of a pool or as windows at home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveInt, Tag

from planner.descriptions.base import Description, Problem
from planner.units import Bytes, BytesPerSecond, Seconds

Name = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
PositiveBytes = Annotated[Bytes, Field(gt=0)]
PositiveSeconds = Annotated[Seconds, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(gt=0, le=1)]
#: Devices of a pool, and layers: more than anything has. A mistyped count is told instead of filling the memory.
MAX_DEVICES, MAX_LAYERS = 4096, 1024
MAX_COUNT = 100_000
Count = Annotated[PositiveInt, Field(le=MAX_COUNT)]


def _how_given(value: Any) -> str:
    return "path" if isinstance(value, str) else "inline"


class EqualLayers(Description):
    """A model as so many equal layers, for who has measured them."""

    num_layers: Annotated[PositiveInt, Field(le=MAX_LAYERS)]
    layer_bytes: Annotated[PositiveBytes, Field(description="weights of one layer")]
    embedding_bytes: Annotated[Bytes, Field(description="beside the first layers")] = 0.0
    head_bytes: Annotated[Bytes, Field(description="beside the last layers")] = 0.0
    kv_bytes_per_token: Annotated[Bytes, Field(description="cache of one token in one layer")] = 0.0
    hand_over_bytes: Annotated[Bytes, Field(description="activations of one token between two stages")] = 0.0


LayersOrModel = Annotated[
    Annotated[Name, Tag("path")] | Annotated[EqualLayers, Tag("inline")], Discriminator(_how_given)
]


class PoolDevices(Description):
    """`count` equal devices at one site. What is left out comes from the catalogue."""

    name: Name
    count: Count = 1
    site: Annotated[Name | None, Field(description="one of `sites`; needed where there are some")] = None
    device: Annotated[Name | None, Field(description="catalogue name; default: `name`")] = None
    memory_bytes: PositiveBytes | None = None
    layer_s: Annotated[
        PositiveSeconds | None, Field(description="one layer of one step, measured; default: roofline")
    ] = None
    head_s: Annotated[
        Seconds | None, Field(description="embedding and head of one step; default: roofline, 0 with layer_s")
    ] = None


class LocalLink(Description):
    """What joins devices of one site."""

    bandwidth_bytes_per_s: BytesPerSecond | None = None
    latency_s: Seconds = 0.0


class Sites(Description):
    """Places and the links between them; entry [from][to], null where there is no link and on the diagonal."""

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=6)]
    bandwidth_bytes_per_s: tuple[tuple[BytesPerSecond | None, ...], ...]
    latency_s: tuple[tuple[Seconds | None, ...], ...]

    def problems(self) -> Iterator[Problem]:
        """Square matrices over the same links."""
        size = len(self.names)
        if len(set(self.names)) < size:
            yield ("names",), "repeat"
        square = True
        for key in ("bandwidth_bytes_per_s", "latency_s"):
            matrix = getattr(self, key)
            if len(matrix) != size:
                square = False
                yield (key,), f"has {len(matrix)} rows for {size} sites"
            for index, row in enumerate(matrix):
                if len(row) != size:
                    square = False
                    yield (key, index), f"has {len(row)} entries for {size} sites"
        if not square:
            return
        for i in range(size):
            for j in range(size):
                bandwidth, latency = self.bandwidth_bytes_per_s[i][j], self.latency_s[i][j]
                if i == j and (bandwidth is not None or latency is not None):
                    yield ("bandwidth_bytes_per_s", i), f"entry {i} is the site itself: null; see local_link"
                elif (bandwidth is None) != (latency is None):
                    told = f"{self.names[i]} to {self.names[j]}"
                    yield ("latency_s", i), f"{told} has a bandwidth or a latency, but not both"


class LayersInstance(Description):
    """Cut a pool of unequal devices into pipelines, each with all layers of the model, for most tokens/s."""

    problem: Literal["parallel"] = "parallel"
    name: Name
    task: Literal["layers"] = "layers"
    model: Annotated[LayersOrModel, Field(description="catalogue name, config.json, or equal layers")]
    precision: Annotated[Name | None, Field(description="format of the weights; default: the checkpoint's")] = None
    devices: Annotated[tuple[PoolDevices, ...], Field(min_length=1, max_length=64)]
    memory_share: Annotated[Share, Field(description="of a device's memory, for weights and cache")] = 0.9
    batch: Annotated[Count, Field(description="sequences that a step carries")] = 1
    context_tokens: Annotated[PositiveInt, Field(le=1 << 24, description="of a sequence, on average")] = 1
    kv_tokens: Annotated[
        PositiveInt | None,
        Field(description="tokens of all sequences for which a pipeline keeps caches; steps in flight end with it"),
    ] = None
    max_latency_s: Annotated[PositiveSeconds | None, Field(description="of a step through a whole pipeline")] = None
    local_link: LocalLink = LocalLink()
    sites: Sites | None = None

    def problems(self) -> Iterator[Problem]:
        """Sites that exist, and room for one step."""
        known = () if self.sites is None else self.sites.names
        for index, one in enumerate(self.devices):
            if one.site is None and known:
                yield ("devices", index, "site"), f"is required: one of {', '.join(known)}"
            elif one.site is not None and one.site not in known:
                yield (
                    ("devices", index, "site"),
                    f"{one.site!r} is none of the sites: {', '.join(known) or 'none given'}",
                )
        if sum(one.count for one in self.devices) > MAX_DEVICES:
            yield ("devices",), f"more than {MAX_DEVICES:,} devices"
        names = [(one.name, one.site) for one in self.devices]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("devices", index, "name"), f"{name[0]!r} is there twice"
        if self.kv_tokens is not None and self.kv_tokens < self.batch * self.context_tokens:
            need = self.batch * self.context_tokens
            yield ("kv_tokens",), f"one step carries {need} tokens (batch x context_tokens)"
        if isinstance(self.model, EqualLayers):
            for index, one in enumerate(self.devices):
                if one.layer_s is None:
                    yield ("devices", index, "layer_s"), "is required for a model that is given as equal layers"


class HomeDevice(Description):
    """A machine on the desk: a CPU with memory and a disk, and maybe a GPU."""

    name: Name
    ram_bytes: Annotated[Bytes, Field(description="memory that weights may take")]
    cpu_layer_s: Annotated[PositiveSeconds, Field(description="one layer of a token on the CPU")]
    gpu_memory_bytes: Annotated[Bytes, Field(description="that weights may take; 0: no GPU")] = 0.0
    gpu_layer_s: Annotated[PositiveSeconds | None, Field(description="one layer of a token on the GPU")] = None
    disk_bytes_per_s: Annotated[BytesPerSecond, Field(description="reading of weights that memory does not hold")]
    hop_s: Annotated[Seconds, Field(description="to hand a token to the next device")] = 0.0
    reload: Annotated[
        Literal["overflow", "all"],
        Field(description="read anew each token once memory is short: what is too much (Linux), or all (macOS)"),
    ] = "overflow"

    def problems(self) -> Iterator[Problem]:
        """A GPU has a speed."""
        if self.gpu_memory_bytes > 0 and self.gpu_layer_s is None:
            yield ("gpu_layer_s",), "is required with gpu_memory_bytes"


class WindowsInstance(Description):
    """Give each of a ring of home devices a window of layers, on its CPU and GPU, for the fastest token."""

    problem: Literal["parallel"] = "parallel"
    name: Name
    task: Literal["windows"] = "windows"
    num_layers: Annotated[PositiveInt, Field(le=MAX_LAYERS)]
    layer_bytes: PositiveBytes
    devices: Annotated[tuple[HomeDevice, ...], Field(min_length=1, max_length=64, description="in ring order")]
    rounds: Annotated[PositiveInt, Field(description="times that a token goes around; divides num_layers")] = 1
    every_device: Annotated[bool, Field(description="each gets at least one layer a round, as prima.cpp does")] = False

    def problems(self) -> Iterator[Problem]:
        """Rounds that divide the layers; names once."""
        if self.num_layers % self.rounds:
            yield ("rounds",), f"{self.rounds} does not divide {self.num_layers} layers"
        names = [one.name for one in self.devices]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("devices", index, "name"), f"{name!r} is there twice"
        if self.every_device and len(names) * self.rounds > self.num_layers:
            yield ("devices",), f"{len(names)} devices in {self.rounds} rounds need more than {self.num_layers} layers"
