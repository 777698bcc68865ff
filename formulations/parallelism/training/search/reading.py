"""From a `train` instance to the problem: model, equal nodes, links, coefficients; all mistakes at once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from formulations.parallelism.training.search.problem import LayerScope, TrainProblem
from formulations.parallelism.training.search.space import divided_by_tensor
from formulations.reading import Reading
from planner import catalog
from planner.cluster import Cluster, Network, Nodes
from planner.cost.training.coefficients import TrainingCoefficients, calibration
from planner.cost.training.communication import INTER_NODE_LATENCY_S, TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.descriptions.efficiency import read_efficiency
from planner.descriptions.training import DenseModel, TrainingInstance
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText, canonical_json, read_as


def read_problem(instance: TrainingInstance, source: SourceText | None = None) -> TrainProblem:
    """Look up model and devices. Raises DescriptionError with all problems found."""
    return _Reading(instance, source).problem()


class _Reading(Reading):
    def __init__(self, instance: TrainingInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance
        self.assumptions: list[str] = []

    def problem(self) -> TrainProblem:
        instance = self.instance
        model = self._model()
        cluster = self._cluster()
        nodes = None if cluster is None else self._equal_nodes(cluster)
        coefficients = None if nodes is None else self._coefficients(nodes)
        if nodes is not None and instance.precision not in nodes.device.flop_per_s:
            known = ", ".join(nodes.device.flop_per_s)
            self.find(("precision",), f"{nodes.device.name} has no matrix units for it; it runs {known}")
        price = None if cluster is None or nodes is None else self._price(cluster, nodes)
        if nodes is not None and instance.objective == "joules" and nodes.device.power_w is None:
            self.find(("objective",), f"joules needs power_w of the device: there is none of {nodes.device.name}")
        self.stop_if_wrong()
        assert model is not None
        assert cluster is not None
        assert nodes is not None
        assert coefficients is not None
        network, domain = self._network(cluster, nodes)
        shipped = calibration()
        mape = next(
            (
                row.held_out_mape
                for row in shipped.times
                if (row.gpu, row.framework) == (nodes.device.name, instance.framework)
            ),
            None,
        )
        problem = TrainProblem(
            name=instance.name,
            sha256=instance_sha256(instance, self.base_dir),
            model=model,
            device=nodes.device,
            network=network,
            coefficients=coefficients,
            margin=shipped.memory.margin,
            precision=instance.precision,
            framework=instance.framework,
            num_gpus=nodes.num_gpus,
            gpus_per_node=nodes.gpus_per_node,
            domain_gpus=domain,
            capacity_bytes=nodes.device.known_memory_bytes * (1.0 - instance.reserve),
            global_batch_size=instance.global_batch_size,
            sequence_length=instance.sequence_length,
            sequence_lengths=instance.sequence_lengths or (),
            gradient_bytes=instance.gradient_bytes,
            flash_attention=instance.flash_attention,
            recompute=self._recompute(),
            layer_scope=self._layer_scope(),
            schedules=tuple(dict.fromkeys(instance.schedules)),
            fixed=instance.fixed.given,
            goal=instance.objective,
            usd_per_gpu_hour=price,
            watts=nodes.device.power_w,
            node_bandwidth_bytes_per_s=self._matrix(),
            time_mape=mape,
            assumptions=(*self.assumptions, *cluster.notes()),
        )
        self._fixed_sizes(problem)
        self.stop_if_wrong()
        return problem

    def _model(self) -> TrainingModel | None:
        given = self.instance.model
        if isinstance(given, DenseModel):
            return TrainingModel.dense(
                layers=given.num_hidden_layers,
                hidden=given.hidden_size,
                heads=given.num_attention_heads,
                kv_heads=given.num_key_value_heads,
                ffn=given.intermediate_size,
                vocab=given.vocab_size,
                gated=given.gated,
                tied=given.tie_word_embeddings,
                dropout=given.dropout,
                name=self.instance.name,
            )
        try:
            spec = catalog.model(self.base_dir / given if given.endswith(".json") else given)
        except OptionError as error:
            self.find(("model",), str(error))
            return None
        return TrainingModel.from_spec(spec)

    def _cluster(self) -> Cluster | None:
        given = self.instance.cluster
        if isinstance(given, Cluster):
            return given
        try:
            return read_as(self.base_dir / given, Cluster)
        except DescriptionError as error:
            self.findings.extend(error.findings)
            return None

    def _equal_nodes(self, cluster: Cluster) -> Nodes | None:
        """All nodes as one group; a finding where they are of several kinds."""
        groups = cluster.resolved()
        first = groups[0]
        same = {(one.device.name, one.gpus_per_node, one.domain_gpus, one.nic_bandwidth_bytes_per_s) for one in groups}
        if len(same) > 1:
            told = ", ".join(dict.fromkeys(f"{one.num_gpus} x {one.device.name}" for one in groups))
            self.find(("cluster", "nodes"), f"{told}: unequal nodes are a problem of their own, see `mixed`")
            return None
        return Nodes(
            device=first.device,
            count=sum(one.count for one in groups),
            gpus_per_node=first.gpus_per_node,
            domain_gpus=first.domain_gpus,
            scale_up_bandwidth_bytes_per_s=first.scale_up_bandwidth_bytes_per_s,
            scale_up_latency_s=first.scale_up_latency_s,
            pcie_bandwidth_bytes_per_s=first.pcie_bandwidth_bytes_per_s,
            pcie_latency_s=first.pcie_latency_s,
            rails=first.rails,
            nic_bandwidth_bytes_per_s=first.nic_bandwidth_bytes_per_s,
        )

    def _network(self, cluster: Cluster, nodes: Nodes) -> tuple[TrainingNetwork, int]:
        """Two tiers of links, and the GPUs that tensor parallelism may span."""
        domain = nodes.domain_gpus if nodes.domain_gpus > 2 else nodes.gpus_per_node
        inside = nodes.scale_up_bandwidth_bytes_per_s if nodes.domain_gpus == domain else None
        inside = inside or nodes.pcie_bandwidth_bytes_per_s or nodes.scale_up_bandwidth_bytes_per_s
        if nodes.domain_gpus < domain:
            self.assumptions.append(f"links inside a node of {domain} GPUs are counted as PCIe")
        fabric, link = cluster.fabric, cluster.network_link()
        outside, latency = inside, INTER_NODE_LATENCY_S
        if fabric is not None and nodes.nic_bandwidth_bytes_per_s is not None:
            outside = nodes.nic_bandwidth_bytes_per_s * nodes.rails / nodes.gpus_per_node
            if link is not None and link.latency_s is not None:
                latency = max(latency, link.latency_s)
        matrix = self._matrix()
        if matrix is not None and len(matrix) > 1:
            apart = ~np.eye(len(matrix), dtype=bool)
            outside = float(1.0 / np.mean(1.0 / matrix[apart])) / nodes.gpus_per_node
            self.assumptions.append("links between nodes are counted at the harmonic mean of the measured matrix")
        assert inside is not None
        assert outside is not None
        network = TrainingNetwork(
            gpus_per_node=domain,
            intra_node_bytes_per_s=inside,
            inter_node_bytes_per_s=outside,
            inter_node_latency_s=latency,
            **_tiers(fabric, nodes, domain, matrix is not None),
        )
        return network, domain

    def _coefficients(self, nodes: Nodes) -> TrainingCoefficients:
        instance, shipped = self.instance, calibration()
        if instance.calibration is not None:
            try:
                own = read_efficiency(str(self.base_dir / instance.calibration))
            except DescriptionError as error:
                self.findings.extend(error.findings)
                return shipped.default
            found = own.of_training(nodes.device.name, instance.framework)
            if found is None:
                told = f"has no training entry for {nodes.device.name}, {instance.framework}"
                self.find(("calibration",), f"{instance.calibration} {told}")
                return shipped.default
            return found
        coefficients = shipped.coefficients(nodes.device.name, instance.framework)
        if coefficients.source != "calibrated":
            told = f"{nodes.device.name} under {instance.framework} was never measured here"
            self.assumptions.append(
                f"{told}: coefficients are those of other GPUs or frameworks; see gpuplan calibrate"
            )
        return coefficients

    def _price(self, cluster: Cluster, nodes: Nodes) -> float | None:
        price = None
        for given, usd in self.instance.prices_usd_per_gpu_hour.items():
            try:
                if cluster.device(given).name == nodes.device.name:
                    price = usd
            except OptionError as error:
                self.find(("prices_usd_per_gpu_hour", given), str(error))
        if price is None and self.instance.objective == "cost" and not self.findings:
            self.find(("prices_usd_per_gpu_hour",), f"there is no price of {nodes.device.name}")
        return price

    def _recompute(self) -> tuple[str, ...]:
        instance = self.instance
        if instance.recompute != "auto":
            return (instance.recompute,)
        return ("none", "full") if instance.flash_attention else ("none", "selective", "full")

    def _layer_scope(self) -> LayerScope:
        """What the framework's options say of single layers, where nothing else is asked for."""
        asked = self.instance.layer_strategies
        if asked != "framework":
            return asked
        return "chunk" if self.instance.framework == "megatron" else "uniform"

    def _matrix(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
        given = self.instance.node_bandwidth_bytes_per_s
        return None if given is None else np.array([[one or 0.0 for one in row] for row in given])

    def _fixed_sizes(self, problem: TrainProblem) -> None:
        """Fixed sizes that no plan can have."""
        fixed, layers = problem.fixed, problem.model.num_layers
        tensor = fixed.get("tensor_parallel_size", 1)
        place = ("fixed", "tensor_parallel_size")
        for count, what in divided_by_tensor(problem):
            if count % tensor:
                self.find(place, f"{tensor} does not divide the {count} {what}")
        if problem.domain_gpus % tensor:
            self.find(place, f"{tensor} does not divide the {problem.domain_gpus} GPUs that fast links join")
        stages = fixed.get("pipeline_parallel_size", 1)
        if stages > layers:
            self.find(("fixed", "pipeline_parallel_size"), f"{stages} stages of {layers} layers: some would be empty")
        virtual = fixed.get("virtual_pipeline_size", 1)
        if stages * virtual > layers:
            self.find(("fixed", "virtual_pipeline_size"), f"{stages} x {virtual} chunks of {layers} layers")
        if virtual > 1 and fixed.get("pipeline_parallel_size") == 1:
            self.find(("fixed", "virtual_pipeline_size"), "interleaving needs more than one stage")
        experts = fixed.get("expert_parallel_size", 1)
        if experts > 1 and not problem.model.num_experts:
            self.find(("fixed", "expert_parallel_size"), f"{experts}, but the model has no experts")
        for count in problem.model.num_experts:
            if count % experts:
                self.find(("fixed", "expert_parallel_size"), f"{experts} does not divide the {count} experts")
        named = ("tensor_parallel_size", "context_parallel_size", "data_parallel_size", "pipeline_parallel_size")
        product = int(np.prod([fixed.get(name, 1) for name in named]))
        if product > problem.num_gpus:
            self.find(("fixed",), f"tensor x context x data x pipeline are {product} GPUs of {problem.num_gpus}")
        matrix = problem.node_bandwidth_bytes_per_s
        nodes = problem.num_gpus // problem.gpus_per_node
        if matrix is not None and len(matrix) != nodes:
            self.find(("node_bandwidth_bytes_per_s",), f"is of {len(matrix)} nodes; the cluster has {nodes}")


def instance_sha256(instance: TrainingInstance, base_dir: Path) -> str:
    """Digest of what an instance says and of the files that it names."""
    said = canonical_json(instance.model_dump(mode="json", exclude_defaults=True))
    digest = hashlib.sha256(said.encode())
    model, cluster = instance.model, instance.cluster
    named = [cluster] if isinstance(cluster, str) else []
    if isinstance(model, str) and model.endswith(".json"):
        named.append(model)
    for name in named:
        digest.update((base_dir / name).read_bytes())
    return digest.hexdigest()


def _tiers(fabric: Network | None, nodes: Nodes, domain: int, measured: bool) -> dict[str, Any]:
    """What lies above a node, in the words of TrainingNetwork; a measured matrix has leaves and spine in its mean."""
    if fabric is None:
        return {}
    if fabric.topology == "rail_only":
        return {"gpus_per_rail": nodes.gpus_per_node // nodes.rails}
    leaf = (fabric.nodes_per_leaf or nodes.count) * nodes.gpus_per_node
    if leaf >= nodes.num_gpus or measured:
        return {}
    return {
        "gpus_per_leaf": -(-leaf // domain) * domain,
        "oversubscription": fabric.oversubscription,
        "spine_latency_s": fabric.spine_latency_s,
    }
