"""From a `parallel` instance to the arrays: workers from the cost model or from a table, those that keep the limits."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np

from formulations.parallelism.candidates import DoesNotFit, predicted_workers
from formulations.parallelism.fitting import ways_to_fit
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import BoolArray, FloatArray, Goal, ParallelProblem, counted_latencies
from formulations.reading import Reading
from planner import catalog
from planner.cluster import Cluster
from planner.cost.serving.intervals import COVERAGE
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.descriptions.efficiency import calibrated
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText, canonical_json, read_as
from planner.model.spec import ModelSpec
from planner.parallel_plan import Served, WorkerType
from planner.readers.worker_table import read_workers

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
        self.served = Served(model=instance.model, precision=instance.precision, backend=instance.backend)

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
        if instance.disaggregated != "allow":
            kept = [
                index
                for index, worker in enumerate(workers)
                if (worker.role == "both") == (instance.disaggregated == "never")
            ]
            workers, device = tuple(workers[index] for index in kept), [device[index] for index in kept]
        margins = self._margins(workers)
        usable, dropped = self._limits(workers, margins)
        target = instance.workload.rate_per_s
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
            margins=margins,
            max_workers=instance.max_workers,
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
            return read_workers(self.base_dir / self.instance.candidates), ("workers as given in the table",)
        spec = self._model()
        try:
            given = self.instance.calibration
            own = None if given is None else calibrated(self.base_dir / given)
            workers, notes, self.predictions = predicted_workers(self.instance, cluster, spec, own)
            return workers, notes
        except DoesNotFit as error:
            self.unfit, self.relaxations = (str(error),), ways_to_fit(self.instance, cluster, spec)
            return (), ()
        except OptionError as error:
            self.find(("precision",), str(error))
            self.stop_if_wrong()
            raise

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
            model = served(spec, precision or "", precision or "")
            narrow = kv_element_bytes(model, self.instance.backend) == 1.0
            formats = {
                "quantization": WEIGHT_FORMATS[precision].name if precision and model is not spec else None,
                "kv_cache_dtype": "fp8" if narrow else None,
            }
            self.served = self.served.model_copy(update=formats)
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

    def _watts(self, workers: tuple[WorkerType, ...]) -> FloatArray:
        """Watts of each worker; 0 for unknown ones where nobody asks for joules."""
        unknown = sorted({worker.device for worker in workers if worker.watts is None})
        if self.instance.objective == "joules" and unknown:
            why = "a column watts" if self.instance.candidates is not None else "power_w of the device"
            self.find(("objective",), f"joules needs {why}: there is none of {', '.join(unknown)}")
            self.stop_if_wrong()
        return np.array([worker.watts or 0.0 for worker in workers], dtype=np.float64)

    def _margins(self, workers: tuple[WorkerType, ...]) -> FloatArray | None:
        """Shares [W, 2] by which TTFT and TPOT count longer: given tables are taken at their word, predictions are off.

        With a confidence c the share is f^(z(c) / z(0.9)) - 1 of the prediction's own factor f: 80 % of measurements
        lie within 1/f .. f, so 90 % below f, and the logarithm of the error is taken as normal.
        """
        if self.instance.candidates is not None:
            return None
        confidence = self.instance.slo_confidence
        if confidence is None:
            return np.full((len(workers), 2), self.instance.margin)
        normal = NormalDist()
        power = normal.inv_cdf(confidence) / normal.inv_cdf((1.0 + COVERAGE) / 2.0)
        spread = [(one.ttft_factor or 1.0, one.tpot_factor or 1.0) for one in workers]
        return np.array(spread, dtype=np.float64).reshape(len(workers), 2) ** power - 1.0

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
        return np.asarray(~late.any(axis=1)), dropped

    def _sha256(self, cluster: Cluster) -> str:
        said = self.instance.model_dump(mode="json", exclude_defaults=True)
        said["cluster"] = cluster.model_dump(mode="json", exclude_defaults=True)
        digest = hashlib.sha256(canonical_json(said).encode())
        model = self.instance.model if str(self.instance.model).endswith(".json") else None
        for name in (self.instance.candidates, model, self.instance.calibration):
            if name is not None:
                digest.update((self.base_dir / name).read_bytes())
        return digest.hexdigest()
