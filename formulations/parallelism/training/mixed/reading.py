"""From a `train` instance to its problem: equal nodes at one place, or blocks of them and what joins those."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.reading import instance_sha256, read_problem
from formulations.parallelism.training.search.space import divided_by_tensor
from formulations.reading import Reading
from planner.cluster import Cluster, Nodes
from planner.descriptions.training import FixedSizes, TrainingInstance
from planner.errors import DescriptionError
from planner.files import SourceText, read_as

#: Sizes that a block alone need not have the GPUs or links for; what they ask of all blocks is looked at here.
SPREAD = ("data_parallel_size", "pipeline_parallel_size", "context_parallel_size", "tensor_parallel_size")


def read_any(instance: TrainingInstance, source: SourceText | None = None) -> TrainProblem | MixedProblem:
    """The problem of an instance. Raises DescriptionError with all problems found."""
    return _Reading(instance, source).problem()


class _Reading(Reading):
    def __init__(self, instance: TrainingInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance

    def problem(self) -> TrainProblem | MixedProblem:
        instance = self.instance
        given = instance.cluster
        cluster = given if isinstance(given, Cluster) else read_as(self.base_dir / given, Cluster)
        if instance.sites is not None and len(instance.sites.nodes) != len(cluster.nodes):
            told = f"{len(instance.sites.nodes)} sites for {len(cluster.nodes)} entries of cluster.nodes"
            self.find(("sites", "nodes"), told)
            self.stop_if_wrong()
        groups = self._blocks(cluster)
        if len(groups) == 1:
            return read_problem(instance, self.source)
        self._refused(cluster, groups)
        blocks = self._read_blocks(cluster, list(groups.values()))
        self.stop_if_wrong()
        sites = tuple(site for _, site in groups)
        bandwidth, latency_s = self._ways(cluster, sites)
        problem = MixedProblem(
            name=instance.name,
            sha256=instance_sha256(instance, self.base_dir),
            blocks=tuple(blocks),
            sites=sites,
            way_bytes_per_s=bandwidth,
            way_latency_s=latency_s,
            assumptions=tuple(dict.fromkeys(told for block in blocks for told in block.assumptions)),
        )
        self._fixed_sizes(problem)
        self.stop_if_wrong()
        return problem

    def _blocks(self, cluster: Cluster) -> dict[tuple[tuple[object, ...], str | None], list[int]]:
        """Entries of cluster.nodes by what makes nodes equal, and their site."""
        found: dict[tuple[tuple[object, ...], str | None], list[int]] = {}
        for index, nodes in enumerate(cluster.resolved()):
            site = None if self.instance.sites is None else self.instance.sites.nodes[index]
            found.setdefault((_same(nodes), site), []).append(index)
        return found

    def _refused(self, cluster: Cluster, groups: dict[tuple[tuple[object, ...], str | None], list[int]]) -> None:
        """What is not searched over unequal nodes, and links that are missing."""
        instance, resolved = self.instance, cluster.resolved()
        sites = [site for _, site in groups]
        if cluster.network is None and len(set(sites)) < len(sites):
            told = ", ".join(f"{resolved[one].num_gpus} x {resolved[one].device.name}" for one, *_ in groups.values())
            self.find(("cluster", "network"), f"is required to join unequal nodes ({told})")
        if cluster.network is not None and cluster.network.topology == "rail_only":
            self.find(("cluster", "network", "topology"), "rail_only joins equal nodes; these are unequal")
        for key, wrong in (
            ("objective", instance.objective != "step_time"),
            ("node_bandwidth_bytes_per_s", instance.node_bandwidth_bytes_per_s is not None),
            ("sequence_lengths", instance.sequence_lengths is not None),
        ):
            if wrong:
                told = "step_time alone is minimised" if key == "objective" else "is not used"
                self.find((key,), f"{told} over unequal nodes or several sites; plan each kind alone for it")
        if "1f1b" not in instance.schedules:
            self.find(("schedules",), "pipelines over unequal nodes run 1f1b")

    def _read_blocks(self, cluster: Cluster, groups: list[list[int]]) -> list[TrainProblem]:
        """Each block as a problem of its own."""
        fixed = self.instance.fixed
        few = FixedSizes.model_validate({**fixed.model_dump(), **dict.fromkeys(SPREAD)})
        found = []
        for indices in groups:
            own = cluster.model_copy(update={"nodes": tuple(cluster.nodes[index] for index in indices)})
            try:
                block = read_problem(
                    self.instance.model_copy(update={"cluster": own, "sites": None, "fixed": few}), self.source
                )
            except DescriptionError as error:
                self.findings += [one for one in error.findings if one not in self.findings]
                continue
            assert isinstance(block, TrainProblem)
            found.append(replace(block, fixed=fixed.given))
        return found

    def _ways(self, cluster: Cluster, sites: tuple[str | None, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Bandwidth and latency between blocks: unlimited at one site, where ports and switches are what limits."""
        count = len(sites)
        bandwidth, latency_s = np.full((count, count), np.inf), np.zeros((count, count))
        link, known = cluster.network_link(), self.instance.sites
        for one in range(count):
            for other in range(count):
                if sites[one] == sites[other] or known is None:
                    latency_s[one, other] = 0.0 if link is None else link.latency_s or 0.0
                    continue
                place = known.names.index(str(sites[one])), known.names.index(str(sites[other]))
                bandwidth[one, other] = known.bandwidth_bytes_per_s[place[0]][place[1]] or 0.0
                latency_s[one, other] = known.latency_s[place[0]][place[1]] or 0.0
        return bandwidth, latency_s

    def _fixed_sizes(self, problem: MixedProblem) -> None:
        """Fixed sizes that no plan can have on all GPUs together."""
        fixed = self.instance.fixed.given
        product = int(np.prod([fixed.get(name, 1) for name in SPREAD]))
        if product > problem.num_gpus:
            self.find(("fixed",), f"tensor x context x data x pipeline are {product} GPUs of {problem.num_gpus}")
        tensor, stages = fixed.get("tensor_parallel_size", 1), fixed.get("pipeline_parallel_size", 1)
        for count, what in divided_by_tensor(problem.any_block):
            if count % tensor:
                self.find(("fixed", "tensor_parallel_size"), f"{tensor} does not divide the {count} {what}")
        if all(block.domain_gpus % tensor for block in problem.blocks):
            self.find(("fixed", "tensor_parallel_size"), f"{tensor} divides the GPUs that fast links join of no kind")
        if stages > problem.model.num_layers:
            told = f"{stages} stages of {problem.model.num_layers} layers: some would be empty"
            self.find(("fixed", "pipeline_parallel_size"), told)


def _same(nodes: Nodes) -> tuple[object, ...]:
    return nodes.device.name, nodes.gpus_per_node, nodes.domain_gpus, nodes.nic_bandwidth_bytes_per_s
