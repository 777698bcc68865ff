"""From an `experts` instance and the files it names to the arrays of the problem, with every mistake located."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from formulations.expert_placement.posterior import scenarios_with_sample
from formulations.expert_placement.problem import CommunicationModel, ExpertPlacementProblem
from formulations.reading import Reading
from planner import catalog
from planner.cost.expert_step import ExpertStep
from planner.cost.serving.precision import WEIGHT_FORMATS
from planner.descriptions.experts import MAX_EXPERTS, MAX_LAYERS, ExpertsInstance
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText, canonical_json
from planner.readers.expert_loads import read_expert_load
from planner.readers.expert_placement import read_expert_placement
from planner.readers.npy import read_npy
from planner.readers.routing_trace import read_routing_trace
from planner.topology import hop_costs
from planner.workload import ExpertLoad, FloatArray, IntArray, RoutingTrace


def read_problem(instance: ExpertsInstance, source: SourceText | None = None) -> ExpertPlacementProblem:
    """Read every file the instance names (relative to `source`, or to the working folder) and build the arrays.

    Raises DescriptionError with all problems found.
    """
    return _Reading(instance, source).problem()


class _Reading(Reading):
    """Reads an instance's data files and collects findings at the keys that name them."""

    def __init__(self, instance: ExpertsInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance

    def problem(self) -> ExpertPlacementProblem:
        loads = self._loads()
        trace = self._trace()
        self.stop_if_wrong()
        num_experts = self._num_experts(loads, trace)
        if loads:
            shapes = {load.counts.shape for load in loads}
            if len(shapes) > 1:
                listed = ", ".join(f"{load.name} {load.counts.shape}" for load in loads)
                self.find(("loads",), f"scenarios differ in layers x experts: {listed}")
                self.stop_if_wrong()
            counts = np.stack([load.counts for load in loads])
        else:
            assert trace is not None
            counts = trace.counts(num_experts)[None]
        used = counts.sum(axis=(0, 2)) > 0
        self._check_counts(counts, loads, used, trace)
        self.stop_if_wrong()
        layer_ids = tuple(int(layer) for layer in np.flatnonzero(used))
        communication = self._communication()
        step = self._step(num_experts)
        current = self._current(layer_ids, counts.shape[1], num_experts)
        self.stop_if_wrong()
        instance = self.instance
        sample = self._sample(counts.shape[1:])
        self.stop_if_wrong()
        problem = ExpertPlacementProblem.from_arrays(
            counts[:, used],
            name=instance.name,
            sha256=self._sha256(),
            num_gpus=instance.num_gpus,
            num_slots=instance.num_slots,
            gpus_per_node=instance.gpus_per_node,
            weight=np.array([load.weight for load in loads]) if loads else None,
            speed=None if instance.gpu_speed is None else np.array(instance.gpu_speed),
            scenario_names=tuple(load.name for load in loads) or ("trace",),
            layer_ids=layer_ids,
            num_decoder_layers=counts.shape[1],
            split=instance.split,
            trace=trace,
            communication=communication,
            num_groups=instance.num_groups,
            group_spread=instance.group_spread,
            expert_bytes=instance.expert_bytes,
            gpu_memory_bytes=instance.gpu_memory_bytes,
            current=current,
            max_moves=instance.max_moves,
            move_cost=instance.move_cost,
            step=step,
        )
        if sample is None or instance.sample is None:
            return problem
        tokens = float(sample[used].sum(axis=1).max()) / instance.sample.top_k
        load, weight = scenarios_with_sample(problem.load, problem.weight, sample[used], tokens)
        names = ("sample", *problem.scenario_names)[: len(load)]
        return problem.with_load(load, weight, names)

    def _sample(self, shape: tuple[int, ...]) -> FloatArray | None:
        item = self.instance.sample
        if item is None:
            return None
        try:
            if item.file is not None:
                counts = read_expert_load(self.path(item.file), name="sample").counts
            else:
                counts = ExpertLoad(name="sample", counts=np.array(item.counts)).counts
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return None
        except ValueError as error:
            self.find(("sample",), str(error))
            return None
        if not counts.any():
            self.find(("sample",), "all counts are zero")
        elif counts.shape != shape:
            self.find(("sample",), f"has {counts.shape} layers x experts, the loads have {shape}")
            return None
        return counts

    def _loads(self) -> list[ExpertLoad]:
        loads: list[ExpertLoad] = []
        for index, item in enumerate(self.instance.loads):
            name = item.name or (Path(item.file).stem if item.file else f"scenario {index}")
            if any(load.name == name for load in loads):
                name = f"{name} ({index})"
            try:
                if item.file is not None:
                    loads.append(read_expert_load(self.path(item.file), name=name, weight=item.weight))
                else:
                    widths = {len(row) for row in item.counts or ()}
                    if len(widths) != 1:
                        self.find(("loads", index, "counts"), f"ragged or empty: rows have {sorted(widths)} experts")
                        continue
                    loads.append(ExpertLoad(name=name, counts=np.array(item.counts), weight=item.weight))
            except DescriptionError as error:
                self.findings.extend(error.findings)
            except ValueError as error:
                self.find(("loads", index), str(error))
        return loads

    def _trace(self) -> RoutingTrace | None:
        item = self.instance.trace
        if item is None:
            return None
        try:
            documents = None if item.documents is None else self.path(item.documents)
            return read_routing_trace(self.path(item.file), documents)
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return None

    def _num_experts(self, loads: list[ExpertLoad], trace: RoutingTrace | None) -> int:
        return int(loads[0].counts.shape[1]) if loads else int(trace.experts.max()) + 1 if trace else 0

    def _check_counts(
        self, counts_or_ragged: FloatArray, loads: list[ExpertLoad], used: np.ndarray, trace: RoutingTrace | None
    ) -> None:
        instance = self.instance
        _, num_rows, num_experts = counts_or_ragged.shape
        if num_rows > MAX_LAYERS or num_experts > MAX_EXPERTS:
            self.find(("loads",), f"{num_rows} layers x {num_experts} experts is beyond any real model")
        for index in np.flatnonzero(counts_or_ragged.sum(axis=(1, 2)) == 0):
            self.find(("loads", int(index)), "all counts are zero")
        if instance.num_slots < num_experts:
            self.find(("num_slots",), f"{instance.num_slots} slots cannot hold {num_experts} experts once each")
        if instance.num_groups is not None and num_experts % instance.num_groups:
            self.find(("num_groups",), f"{num_experts} experts are not {instance.num_groups} equal groups")
        if trace is not None:
            if int(trace.experts.max()) >= num_experts:
                self.find(("trace",), f"names expert {int(trace.experts.max())}, but there are {num_experts}")
            if trace.num_layers != int(used.sum()):
                self.find(("trace",), f"covers {trace.num_layers} layers, the loads have {int(used.sum())} MoE layers")

    def _communication(self) -> CommunicationModel | None:
        item, instance = self.instance.communication, self.instance
        if item is None:
            return None
        cost, intra, inter = hop_costs(
            instance.num_gpus,
            instance.gpus_per_node or instance.num_gpus,
            item.intra_node_cost,
            item.inter_node_cost,
        )
        if item.cost_file is not None:
            cost = self._costs(item.cost_file, cost)
        return CommunicationModel(
            model=item.model, weight=item.weight, cost=cost, intra_node_cost=intra, inter_node_cost=inter
        )

    def _step(self, num_experts: int) -> ExpertStep | None:
        item = self.instance.step
        if item is None:
            return None
        try:
            model = catalog.model(self.path(item.model) if self._is_file(item.model) else item.model)
            if item.precision is not None:
                model = model.with_formats(experts=WEIGHT_FORMATS[item.precision])
            step = ExpertStep.of(model, catalog.device(item.device), item.tokens)
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return None
        except (OptionError, ValueError) as error:
            self.find(("step",), str(error))
            return None
        if step.num_experts != num_experts:
            message = f"{model.name} has {step.num_experts} experts, the loads have {num_experts}"
            self.find(("step", "model"), message)
        return step

    def _is_file(self, name: str) -> bool:
        return name.endswith(".json") or (self.base_dir / name / "config.json").is_file()

    def _costs(self, name: str, default: FloatArray) -> FloatArray:
        """The matrix of `cost_file`; the default one where it is wrong, which a finding says."""
        where = ("communication", "cost_file")
        try:
            cost = read_npy(self.path(name)).astype(np.float64)
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return default
        if cost.shape != default.shape:
            self.find(where, f"has shape {cost.shape}, {default.shape} is needed")
        elif not np.isfinite(cost).all() or (cost < 0).any() or cost.diagonal().any():
            self.find(where, "costs are finite and not negative, and 0 on the diagonal")
        else:
            return cost
        return default

    def _current(self, layer_ids: tuple[int, ...], num_decoder_layers: int, num_experts: int) -> IntArray | None:
        instance = self.instance
        if instance.current is None:
            return None
        try:
            found = read_expert_placement(self.path(instance.current))
            rows = found.rows(layer_ids, num_decoder_layers)
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return None
        if found.num_gpus not in (None, instance.num_gpus):
            self.find(("current",), f"is a plan for {found.num_gpus} GPUs, the instance has {instance.num_gpus}")
        elif rows.shape[1] != instance.num_slots:
            self.find(("current",), f"has {rows.shape[1]} slots a layer, the instance {instance.num_slots}")
        elif rows.min() < 0 or rows.max() >= num_experts:
            self.find(("current",), f"names experts outside 0 .. {num_experts - 1}")
        return rows

    def _sha256(self) -> str:
        """Hash of the instance and of the bytes of every file it names."""
        # Without defaults, so that a key added later leaves the hashes of older instances as they are.
        said = self.instance.model_dump(mode="json", exclude_defaults=True)
        digest = hashlib.sha256(canonical_json(said).encode())
        names = [load.file for load in self.instance.loads] + [self.instance.current]
        if self.instance.sample is not None:
            names.append(self.instance.sample.file)
        if self.instance.trace is not None:
            names += [self.instance.trace.file, self.instance.trace.documents]
        if self.instance.communication is not None:
            names.append(self.instance.communication.cost_file)
        if self.instance.step is not None and self.instance.step.model.endswith(".json"):
            names.append(self.instance.step.model)
        for name in names:
            if name is not None:
                with open(self.path(name), "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
