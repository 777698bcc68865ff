"""From a `parallel` instance to the arrays: workers from the cost model or from a table, those that keep the limits."""

from __future__ import annotations

import hashlib

import numpy as np

from formulations.parallelism.candidates import DoesNotFit, as_served, predicted_workers
from formulations.parallelism.fitting import ways_to_fit
from formulations.parallelism.floor import floors
from formulations.parallelism.margins import margins
from formulations.parallelism.plans import by_hour
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import BoolArray, FloatArray, Goal, ParallelProblem, counted_latencies
from formulations.parallelism.sizes import SizedWorkers, sized_workers
from formulations.parallelism.splits import drafting
from formulations.reading import Reading
from planner import catalog
from planner.cluster import Cluster
from planner.cost.serving.precision import WEIGHT_FORMATS
from planner.descriptions.efficiency import calibrated
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText, canonical_json, read_as
from planner.model.spec import ModelSpec
from planner.parallel_plan import ParallelPlan, Served, Workers, WorkerType
from planner.plan import read_document
from planner.readers.worker_table import read_workers

#: A measured rate may be so much above what its batch and time per token make: means are taken over other requests.
LITTLE_SLACK = 1.1
ROLES = {"both": 0, "prefill": 1, "decode": 2}


def read_problem(instance: ParallelInstance, source: SourceText | None = None) -> ParallelProblem:
    """Read the files that the instance names and build the arrays. Raises DescriptionError with all problems found."""
    return _Reading(instance, source).problem()


class _Reading(Reading):
    """Builds the arrays and collects findings at the keys that cause them."""

    def __init__(self, instance: ParallelInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance
        #: Why no worker fits, and what would help.
        self.unfit: tuple[str, ...] = ()
        self.relaxations: tuple[str, ...] = ()
        self.predictions: Predictions | None = None
        self.sized: SizedWorkers | None = None
        self.served = Served(
            model=instance.model,
            checkpoint=instance.checkpoint,
            precision=instance.precision,
            backend=instance.backend,
        )

    def problem(self) -> ParallelProblem:
        instance = self.instance
        given = instance.cluster
        cluster = read_as(self.base_dir / given, Cluster) if isinstance(given, str) else given
        groups = cluster.resolved()
        names = [group.device.name for group in groups]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.find(("cluster",), f"{name} is in two groups of nodes; give one group a kind of node")
        self.stop_if_wrong()
        workers, assumptions = self._workers(cluster)
        device = self._devices(workers, cluster, names)
        self.stop_if_wrong()
        kept = [
            index
            for index, worker in enumerate(workers)
            if instance.disaggregated == "allow" or (worker.role == "both") == (instance.disaggregated == "never")
        ]
        if workers and not kept:
            kinds = "mixed" if instance.disaggregated == "only" else "prefill and decode"
            self.unfit = (f"all workers are {kinds} ones, which disaggregated: {instance.disaggregated} rules out",)
            self.relaxations = ("let disaggregated be allow, or add workers of the other kind",)
        workers, device = tuple(workers[index] for index in kept), [device[index] for index in kept]
        counted = self._margins(workers)
        usable, dropped = self._limits(workers, counted)
        sized = self.sized
        if sized is not None and counted is not None:
            sized = sized.only(kept).within(instance.slo.ttft_s, instance.slo.tpot_s, counted)
            workers, usable = sized.types, np.asarray((sized.size_rate > 0).any(axis=0))
        current = self._current()
        target, hourly = instance.workload.most_per_s, instance.workload.hourly
        goal: Goal = instance.objective or ("throughput" if target is None else "gpus")
        gpus = np.array([worker.num_gpus for worker in workers], dtype=np.int64)
        return ParallelProblem(
            name=instance.name,
            sha256=self._sha256(cluster),
            workers=workers,
            usable=usable,
            role=np.array([ROLES[worker.role] for worker in workers], dtype=np.int64),
            rate=np.array([worker.requests_per_s for worker in workers], dtype=np.float64),
            gpus=gpus,
            device=np.array(device, dtype=np.int64),
            price=gpus * self._prices(cluster, names)[device],
            watts=self._watts(workers),
            device_names=tuple(names),
            nodes=np.array([group.count for group in groups], dtype=np.int64),
            node_gpus=np.array([group.gpus_per_node for group in groups], dtype=np.int64),
            goal=goal,
            target_per_s=target if goal != "throughput" else None,
            input_tokens=instance.workload.input_tokens,
            output_tokens=instance.workload.output_tokens,
            ttft_s=instance.slo.ttft_s,
            tpot_s=instance.slo.tpot_s,
            margins=counted,
            max_workers=instance.max_workers,
            sizes=None if sized is None else sized.sizes,
            share=None if sized is None else sized.share,
            size_rate=None if sized is None else sized.size_rate,
            hourly=None if hourly is None else np.array(hourly, dtype=np.float64),
            current=current,
            change_cost=instance.change_cost,
            dropped=(*self.unfit, *dropped),
            relaxations=self.relaxations,
            assumptions=(*assumptions, *self._unjudged(), *cluster.notes()),
            source="given" if instance.candidates is not None else "predicted",
            served=self.served,
            predictions=self.predictions,
        )

    def _workers(self, cluster: Cluster) -> tuple[tuple[WorkerType, ...], tuple[str, ...]]:
        if self.instance.candidates is not None:
            if "backend" not in self.instance.model_fields_set:
                self.served = self.served.model_copy(update={"backend": None})
            workers = read_workers(self.base_dir / self.instance.candidates)
            self._refuse_impossible(workers)
            return workers, ("workers as given in the table",)
        spec = self._model()
        try:
            self.instance = drafting(self.instance, spec)
        except OptionError as error:
            self.find(("speculation",), str(error))
        if self.instance.two_batch_overlap and not spec.num_moe_layers:
            self.find(("two_batch_overlap",), f"{spec.name} has no experts, so no exchange that could overlap")
        self.stop_if_wrong()
        try:
            given = self.instance.calibration
            own = None if given is None else calibrated(self.base_dir / given)
            if self.instance.workload.others:
                self.sized = sized_workers(self.instance, cluster, spec, own)
                self.predictions = self.sized.predictions
                return self.sized.types, self.sized.notes
            workers, notes, self.predictions = predicted_workers(self.instance, cluster, spec, own)
            return workers, notes
        except DoesNotFit as error:
            self.unfit, self.relaxations = (str(error),), ways_to_fit(self.instance, cluster, spec)
            return (), ()
        except OptionError as error:
            self.find(("precision",), str(error))
            self.stop_if_wrong()
            raise

    def _refuse_impossible(self, workers: tuple[WorkerType, ...]) -> None:
        """Little's law: a batch gives each of its sequences a token in no less than tpot_s."""
        tokens = self.instance.workload.output_tokens
        for one in workers:
            if one.role == "prefill" or one.max_batch_size is None or not one.tpot_s or tokens < 2:
                continue
            most = one.max_batch_size / (one.tpot_s * (tokens - 1))
            if one.requests_per_s > LITTLE_SLACK * most:
                self.find(
                    ("candidates",),
                    f"worker {one.name!r}: {one.requests_per_s:g} requests/s are more than the {most:.4g} that"
                    f" {one.max_batch_size} sequences of {tokens} tokens make at {one.tpot_s:g} s a token",
                )

    def _model(self) -> ModelSpec:
        """The model as it is stored; notes the formats that it is served in."""
        name, precision = str(self.instance.model), self.instance.precision
        try:
            spec = catalog.model(self.base_dir / name if name.endswith(".json") else name)
        except OptionError as error:
            self.find(("model",), str(error))
            self.stop_if_wrong()
            raise
        if precision is None or precision in WEIGHT_FORMATS:
            self.served = as_served(spec, self.served)
        return spec

    def _devices(self, workers: tuple[WorkerType, ...], cluster: Cluster, names: list[str]) -> list[int]:
        """Which group of nodes each worker belongs to; names are read as the catalogue reads them."""
        found: dict[str, int] = {}
        for name in dict.fromkeys(worker.device for worker in workers):
            try:
                known = cluster.device(name).name
            except (OptionError, DescriptionError) as error:
                self.find(("candidates",), f"device {name!r}: {error}")
                continue
            if known not in names:
                self.find(("candidates",), f"device {name!r} is not in the cluster, which has {', '.join(names)}")
            else:
                found[name] = names.index(known)
        return [found.get(worker.device, 0) for worker in workers]

    def _unjudged(self) -> tuple[str, ...]:
        percentile, rate = self.instance.slo.percentile, self.instance.workload.rate_per_s
        unjudged = [] if percentile is None else [f"limits are held by means: percentile {percentile:g} is not judged"]
        if self.instance.objective == "throughput" and rate is not None:
            unjudged.append(f"throughput is asked, so the rate of {rate:g} requests/s is not")
        return tuple(unjudged)

    def _prices(self, cluster: Cluster, names: list[str]) -> FloatArray:
        """USD/hour of a GPU of each group of nodes; 0 for an unknown price where none is asked."""
        prices: dict[str, float] = {}
        for given, price in self.instance.prices_usd_per_gpu_hour.items():
            try:
                prices[cluster.device(given).name] = price
            except OptionError as error:
                self.find(("prices_usd_per_gpu_hour", given), str(error))
        unpriced = sorted(set(names) - set(prices))
        if self.instance.objective == "cost" and unpriced and not self.findings:
            self.find(("prices_usd_per_gpu_hour",), f"there is no price of {', '.join(unpriced)}")
        self.stop_if_wrong()
        return np.array([prices.get(name, 0.0) for name in names], dtype=np.float64)

    def _current(self) -> tuple[Workers, ...] | None:
        """The workers of the plan in force; of a plan by the hour those of its last hour."""
        if self.instance.current is None:
            return None
        document = read_document(self.base_dir / self.instance.current)
        if not isinstance(document.plan, ParallelPlan):
            self.find(("current",), f"{self.instance.current} holds no plan of serving workers")
            self.stop_if_wrong()
            return None
        return by_hour(document.plan)[-1][1]

    def _watts(self, workers: tuple[WorkerType, ...]) -> FloatArray:
        """Watts of each worker; 0 for unknown ones where nobody asks for joules."""
        unknown = sorted({worker.device for worker in workers if worker.watts is None})
        if self.instance.objective == "joules" and unknown:
            why = "a column watts" if self.instance.candidates is not None else "power_w of the device"
            self.find(("objective",), f"joules needs {why}: there is none of {', '.join(unknown)}")
            self.stop_if_wrong()
        return np.array([worker.watts or 0.0 for worker in workers], dtype=np.float64)

    def _margins(self, workers: tuple[WorkerType, ...]) -> FloatArray | None:
        """Shares [W, 2] by which TTFT and TPOT count longer; None for given tables, which are taken at their word."""
        if self.instance.candidates is not None:
            return None
        spread = [(one.ttft_factor or 1.0, one.tpot_factor or 1.0) for one in workers]
        return margins(self.instance, np.array(spread, dtype=np.float64).reshape(len(workers), 2))

    def _limits(self, workers: tuple[WorkerType, ...], margins: FloatArray | None) -> tuple[BoolArray, tuple[str, ...]]:
        """Workers that keep the SLO, and how many do not and why."""
        limits = {"ttft_s": self.instance.slo.ttft_s, "tpot_s": self.instance.slo.tpot_s}
        counted = counted_latencies(workers, margins)
        late = counted > [np.inf if limit is None else limit for limit in limits.values()]
        dropped = tuple(
            f"{count} of {len(workers)} workers miss {name} {limits[name]:g}"
            for name, count in zip(limits, late.sum(axis=0).tolist(), strict=True)
            if count
        )
        idle = sum(worker.requests_per_s == 0 for worker in workers)
        told = [f"{idle} of {len(workers)} workers serve 0 requests/s"] if idle else []
        if self.predictions is not None:
            told += floors(self.predictions, workers, limits, late)
        return np.asarray(~late.any(axis=1)), (*dropped, *told)

    def _sha256(self, cluster: Cluster) -> str:
        said = self.instance.model_dump(mode="json", exclude_defaults=True)
        said["cluster"] = cluster.model_dump(mode="json", exclude_defaults=True)
        digest = hashlib.sha256(canonical_json(said).encode())
        model = self.instance.model if str(self.instance.model).endswith(".json") else None
        for name in (self.instance.candidates, model, self.instance.calibration, self.instance.current):
            if name is not None:
                digest.update((self.base_dir / name).read_bytes())
        return digest.hexdigest()
