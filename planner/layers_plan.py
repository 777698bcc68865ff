"""LayersPlan and WindowsPlan: which layers of a model lie on which of unequal devices."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description

Time = Annotated[FiniteFloat, Field(ge=0)]
Rate = Annotated[FiniteFloat, Field(gt=0)]
Layer = Annotated[int, Field(ge=0, lt=2**31)]


class LayerStage(Description):
    """A device of a pipeline, and the layers first_layer .. first_layer + num_layers - 1 on it."""

    device: str
    site: str | None = None
    first_layer: Layer
    num_layers: PositiveInt
    stage_s: Time


class LayerPipeline(Description):
    """`count` equal pipelines, each with all layers.

    slot_s : no stage takes longer. steps_per_s : of one pipeline; below 1 / slot_s where links between sites are
    shared. latency_s : of a step through all stages, a slot each, and all links.
    """

    count: PositiveInt
    slot_s: Annotated[FiniteFloat, Field(gt=0)]
    steps_per_s: Rate
    latency_s: Time
    stages: Annotated[tuple[LayerStage, ...], Field(min_length=1)]


class IdleDevices(Description):
    """Devices that no pipeline uses."""

    device: str
    site: str | None = None
    count: PositiveInt


class LayersPlan(Description):
    """The pipelines that a pool is cut into; tokens_per_s is of all."""

    num_layers: PositiveInt
    num_devices: PositiveInt
    tokens_per_s: Rate
    pipelines: Annotated[tuple[LayerPipeline, ...], Field(min_length=1)]
    idle: tuple[IdleDevices, ...] = ()


class LayerWindow(Description):
    """What one device does in each round: `num_layers` layers, of them `gpu_layers` on its GPU.

    resident_bytes, reloaded_bytes : of its weights of all rounds: kept in RAM, and read from disk for every token.
    """

    device: str
    num_layers: PositiveInt
    gpu_layers: Layer
    resident_bytes: Annotated[FiniteFloat, Field(ge=0)]
    reloaded_bytes: Annotated[FiniteFloat, Field(ge=0)]
    compute_s: Time
    disk_s: Time
    hop_s: Time


class WindowsPlan(Description):
    """The windows in ring order; devices without layers are left out. token_s : of one token, all rounds."""

    num_layers: PositiveInt
    rounds: PositiveInt
    token_s: Annotated[FiniteFloat, Field(gt=0)]
    windows: Annotated[tuple[LayerWindow, ...], Field(min_length=1)]
