"""Workers of each service on each kind of GPU, from the serving search: what one of them serves of every size.

Kept are those that no other of the same role and GPUs beats for every size. With recorded expert loads, workers that
share their experts are also tried with second copies of busy ones, as even as these loads let them lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from formulations.deployment.experts import expert_problem, imbalance
from formulations.deployment.problem import Named, Predicted
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.gpu_fleet.problem import FloatArray
from formulations.parallelism.candidates import DoesNotFit, Variants, as_served
from formulations.parallelism.margins import margins
from formulations.parallelism.predictions import SIZES
from formulations.parallelism.sizes import SizedWorkers, sized_workers
from formulations.reading import Reading
from planner import catalog
from planner.cluster import Cluster, NodeGroup
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.precision import WEIGHT_FORMATS
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.deploy import DeployInstance, Service
from planner.descriptions.fleet import LEAST_RATE_PER_S
from planner.descriptions.parallel import ParallelInstance, RequestSize, ServingLoad
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec
from planner.parallel_plan import Served, WorkerType
from planner.readers.service_workers import ServiceWorker
from planner.units import format_seconds
from planner.workload import Slo


@dataclass(frozen=True, slots=True)
class Kind:
    """A GPU, GPUs of the largest node that has it, nodes of one worker at most, and its network, if that is limited."""

    described: DeviceKind
    gpus: int
    nodes: int
    network_bytes_per_s: float | None = None

    @property
    def device(self) -> str:
        """Its name."""
        return self.described.name


@dataclass(slots=True)
class Found:
    """Workers in the order of the services; experts : by service, GPUs and slots; notes : what was assumed.

    unfit : why services have no worker. served : what the workers of each service run.
    """

    workers: list[ServiceWorker]
    predicted: dict[Named, Predicted]
    experts: dict[tuple[str, int, int], ExpertPlacementProblem]
    notes: list[str]
    unfit: list[str] = field(default_factory=list)
    served: dict[str, Served] = field(default_factory=dict)


def predicted_workers(
    instance: DeployInstance, kinds: Sequence[Kind], coefficients: Coefficients | None, reading: Reading
) -> Found:
    """The workers of all services; mistakes go to `reading`. A service without any has one that serves nothing."""
    found = Found([], {}, {}, [])
    for index, service in enumerate(instance.services):
        spec = _spec(service, index, reading)
        if spec is None:
            continue
        asked = Served(
            model=service.model,
            checkpoint=service.checkpoint,
            precision=service.precision,
            backend=service.backend,
        )
        if service.precision is None or service.precision in WEIGHT_FORMATS:
            found.served[service.name] = as_served(spec, asked)
        search = _Service(instance, service, index, spec, coefficients, reading, found)
        refused = [told for kind in kinds if (told := search.on(kind)) is not None]
        mine = [one for one in found.workers if one.service == service.name]
        roles = {one.role for one in mine}
        if "both" not in roles and not {"prefill", "decode"} <= roles:
            found.workers = [one for one in found.workers if one.service != service.name]
            found.unfit.append(f"{service.name} has no worker: {'; '.join(dict.fromkeys(refused))}")
            sizes = {(one.input_tokens, one.output_tokens): 0.0 for one in service.demand}
            found.workers.append(ServiceWorker("none", service.name, kinds[0].device, "both", 1, {}, sizes))
        else:
            types = ", ".join(f"{sum(one.device == kind.device for one in mine)} on {kind.device}" for kind in kinds)
            found.notes.append(f"{service.name}: {types} of {search.priced} priced worker types are undominated")
    return found


def _spec(service: Service, index: int, reading: Reading) -> ModelSpec | None:
    name = str(service.model)
    try:
        return catalog.model(reading.path(name) if name.endswith(".json") else name)
    except (OptionError, DescriptionError) as error:
        reading.find(("services", index, "model"), str(error))
        return None


class _Service:
    """One service's workers."""

    def __init__(
        self,
        instance: DeployInstance,
        service: Service,
        index: int,
        spec: ModelSpec,
        coefficients: Coefficients | None,
        reading: Reading,
        found: Found,
    ) -> None:
        self.instance, self.service, self.index, self.spec = instance, service, index, spec
        self.coefficients, self.reading, self.found = coefficients, reading, found
        self.slo = service.slo or instance.slo or Slo()
        self.loads = instance.loads.get(service.name, ())
        self.even: dict[tuple[int, int], float] = {}
        self.priced = 0

    def on(self, kind: Kind) -> str | None:
        """Add the workers on one kind of GPU; why there is none."""
        group = NodeGroup(device=kind.described, count=kind.nodes, gpus_per_node=kind.gpus)
        asked = self._asked(kind, Cluster(nodes=(group,)))
        assert isinstance(asked.cluster, Cluster)
        variants = self._variants(kind) if self.loads else None
        try:
            sized = sized_workers(asked, asked.cluster, self.spec, self.coefficients, variants)
        except DoesNotFit as error:
            return f"{kind.device}: {error}"
        except OptionError as error:
            self.reading.find(("services", self.index, "precision"), str(error))
            return None
        spread = np.array([(one.ttft_factor or 1.0, one.tpot_factor or 1.0) for one in sized.types])
        kept = sized.within(self.slo.ttft_s, self.slo.tpot_s, margins(asked, spread.reshape(-1, 2)))
        chosen = [w for w, one in enumerate(kept.types) if self._wanted(one) and (kept.size_rate[:, w] > 0).any()]
        for w in _undominated(kept, chosen):
            self._add(kept, w, kind)
        self.priced += len(sized.types)
        whole = {one.role for w, one in enumerate(kept.types) if w in chosen}
        return None if "both" in whole or {"prefill", "decode"} <= whole else self._too_slow(sized, kind)

    def _too_slow(self, sized: SizedWorkers, kind: Kind) -> str:
        """Which limits no worker keeps, and how fast the fastest is."""
        told = []
        for place, (name, limit) in enumerate((("TTFT", self.slo.ttft_s), ("TPOT", self.slo.tpot_s))):
            times = np.where(sized.size_rate > 0, sized.latencies[:, :, place], np.inf)
            best = float(np.where(times > 0, times, np.inf).min(initial=np.inf))
            if limit is not None and np.isfinite(best):
                told.append(f"{name} {format_seconds(best)} at best, limit {format_seconds(limit)}")
        sizes = "" if self.service.gpus_per_worker is None else " of the sizes asked for"
        return f"on {kind.device} none{sizes} keeps the limits together ({', '.join(told) or 'no limit'})"

    def _asked(self, kind: Kind, cluster: Cluster) -> ParallelInstance:
        """The service on one kind of GPU, in the terms of the serving search."""
        sizes = [
            RequestSize(
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
                weight=min(1e6, max(LEAST_RATE_PER_S, float(np.mean(one.hourly or (one.rate_per_s or 0.0,))))),
            )
            for one in self.service.demand
        ]
        network = kind.network_bytes_per_s
        return ParallelInstance(
            name=self.service.name,
            model=self.service.model,
            cluster=cluster,
            precision=self.service.precision,
            workload=ServingLoad(**sizes[0].model_dump(), others=tuple(sizes[1:])),
            slo=self.slo,
            backend=self.service.backend,
            disaggregated=self.service.disaggregated,
            margin=self.instance.margin,
            prices_usd_per_gpu_hour={},
            kv_bandwidth_bytes_per_s=None if network is None else network / kind.gpus,
        )

    def _wanted(self, one: WorkerType) -> bool:
        sizes = self.service.gpus_per_worker
        mixed = self.service.disaggregated == "allow" or one.role == "both"
        return mixed and (sizes is None or one.num_gpus in sizes)

    def _variants(self, kind: Kind) -> Variants:
        """Second copies of busy experts, as even as the recorded loads let them lie."""

        def more(worker: ServingWorker) -> Iterable[ServingWorker]:
            ranks = worker.expert_parallel_size
            counts = {layer.mlp.num_experts for layer, _ in worker.model.layer_groups()} - {0}
            if ranks < 2 or len(counts) != 1 or worker.redundant_experts:
                return
            # Without copies, tokens fall as in the operator tables; the map is made all the same.
            self._problem(ranks, max(counts), kind)
            for redundant in self.instance.redundant_experts:
                slots = max(counts) + redundant
                if redundant and slots % ranks == 0 and redundant <= max(counts):
                    even = self._even(ranks, slots, kind)
                    if even is not None:
                        yield replace(worker, redundant_experts=redundant, expert_imbalance=even)

        return more

    def _problem(self, ranks: int, slots: int, kind: Kind) -> ExpertPlacementProblem | None:
        """Placing the experts of a worker; None where the loads cannot be read, which is told once."""
        name, known = self.service.name, self.found.experts
        if (name, ranks, slots) not in known and not self.reading.findings:
            text = self.reading.source
            source = SourceText(f"loads of {name}" if text is None else text.path, "{}", {}, self.reading.base_dir)
            try:
                known[name, ranks, slots] = expert_problem(name, self.loads, ranks, slots, kind.gpus, source)
            except DescriptionError as error:
                for finding in error.findings:
                    self.reading.find(("loads", name), finding.message)
        return known.get((name, ranks, slots))

    def _even(self, ranks: int, slots: int, kind: Kind) -> float | None:
        """Load of the busiest rank over the mean; None where the loads cannot be read."""
        problem = self._problem(ranks, slots, kind)
        if problem is not None and (ranks, slots) not in self.even:
            self.even[ranks, slots] = imbalance(problem)
        return self.even.get((ranks, slots))

    def _add(self, kept: SizedWorkers, w: int, kind: Kind) -> None:
        one = kept.types[w]
        sizes = {name: int(getattr(one, name)) for name in SIZES if int(getattr(one, name)) > 0}
        counts = {layer.mlp.num_experts for layer, _ in self.spec.layer_groups()} - {0}
        if one.expert_parallel_size > 1 and len(counts) == 1:
            sizes["expert_slots"] = max(counts) + one.redundant_experts
        rates = {
            (int(size[0]), int(size[1])): float(rate)
            for size, rate in zip(kept.sizes.tolist(), kept.size_rate[:, w].tolist(), strict=True)
        }
        model = kept.predictions.model_of(one)
        assert model is not None
        worker = ServiceWorker(one.name, self.service.name, one.device, one.role, one.num_gpus, sizes, rates)
        self.found.workers.append(worker)
        self.found.predicted[self.service.name, one.name] = Predicted(one, model, self.slo)


def _undominated(kept: SizedWorkers, chosen: Sequence[int]) -> list[int]:
    """Of the chosen types, those that no other of the same role and GPUs beats or equals for every size."""
    groups: dict[tuple[str, int], list[int]] = {}
    for w in chosen:
        groups.setdefault((kept.types[w].role, kept.types[w].num_gpus), []).append(w)
    found = []
    for members in groups.values():
        rates: FloatArray = kept.size_rate[:, members].T
        order = sorted(range(len(members)), key=lambda i: (-rates[i].sum(), i))
        best: list[int] = []
        for i in order:
            if not any((rates[j] >= rates[i]).all() for j in best):
                best.append(i)
        found += [members[i] for i in best]
    return sorted(found)
