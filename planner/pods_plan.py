"""PodsPlan: where every pod runs, to the device; which do not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from planner.descriptions.base import Description, Problem

Count = Annotated[int, Field(ge=0, lt=2**31)]


class GpuShare(Description):
    """Thousandths of one device of the node."""

    index: Annotated[int, Field(ge=0, lt=1024)]
    gpu_milli: Annotated[int, Field(ge=1, le=1000)]


class Placement(Description):
    """A pod and its place. `running`: it is there already, and stays. `numa`: with the objective fragments."""

    pod: str
    node: str
    gpus: tuple[GpuShare, ...] = ()
    numa: tuple[int, ...] = ()
    running: bool = False


class Unplaced(Description):
    """A pod without a place, and what stands in its way."""

    pod: str
    reason: str


class PodMove(Description):
    """A running pod that changes its node; moves of one step happen together, each started before it is stopped.

    way : `spare` goes to a place for a while, to let others pass; `evict-first` stops at the beginning of `step` and
        starts again in step `arrives`.
    gpus, numa : devices and NUMA nodes at the new node.
    """

    step: Count
    pod: str
    from_node: Annotated[str, Field(alias="from")]
    to_node: Annotated[str, Field(alias="to")]
    gpus: tuple[GpuShare, ...] = ()
    numa: tuple[int, ...] = ()
    way: Literal["direct", "spare", "evict-first"] = "direct"
    arrives: Count | None = None


class Tier(Description):
    """One aim of a lexicographic objective, from the most important: what is reached and what is possible at all.

    sense : whether more or less is better. bound : no plan that does as well on the tiers before can pass it.
    """

    name: str
    unit: str
    sense: Annotated[str, Field(pattern="^(most|least)$")]
    value: FiniteFloat
    bound: FiniteFloat | None
    gap: Annotated[FiniteFloat | None, Field(description="|value - bound| over the larger of them")]
    proven: Annotated[bool, Field(description="whether the value meets the bound")]


class NodesToAdd(Description):
    """So many nodes of one kind; `like` a node of the cluster, or of an offer's name."""

    name: str
    count: Annotated[int, Field(ge=1, lt=2**31)]
    gpus: Count = 0
    gpu_model: str = ""
    price_usd_per_hour: Annotated[FiniteFloat | None, Field(description="of one node")] = None


class Remedy(Description):
    """What would give pods a place that the plan leaves without one, on top of the plan; nothing of it is in the plan.

    way : `moves` of pods that run when the plan is carried out, `nodes` to add, or `none` where nothing helps.
    proven : fewest moves; fewest nodes, or cheapest where every offer has a price; or that nothing helps.
    placements : where the pods go after the moves.
    """

    pods: tuple[str, ...]
    way: Literal["moves", "nodes", "none"]
    proven: bool
    text: str
    moves: tuple[PodMove, ...] = ()
    placements: tuple[Placement, ...] = ()
    nodes: tuple[NodesToAdd, ...] = ()
    price_usd_per_hour: Annotated[FiniteFloat | None, Field(description="of all nodes together")] = None


class PodsPlan(Description):
    """An answer to a `pods` instance. Evictions come first, then moves by step, then pending pods start."""

    placements: tuple[Placement, ...]
    unplaced: tuple[Unplaced, ...] = ()
    moves: tuple[PodMove, ...] = ()
    evictions: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """Every pod once."""
        seen: set[str] = set()
        for place, index, pod in [
            *(("placements", index, one.pod) for index, one in enumerate(self.placements)),
            *(("unplaced", index, one.pod) for index, one in enumerate(self.unplaced)),
        ]:
            if pod in seen:
                yield (place, index, "pod"), f"{pod} is told twice"
            seen.add(pod)
