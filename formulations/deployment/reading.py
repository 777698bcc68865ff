"""From a `deploy` instance to its problem: a fleet of services on offers and standing nodes, mistakes located."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pydantic import ValidationError

from formulations.deployment.check import check_alone
from formulations.deployment.current import running_workers
from formulations.deployment.experts import expert_problem, sharing
from formulations.deployment.problem import DeployProblem
from formulations.deployment.standing import MOST_TOLD, Standing, standing
from formulations.deployment.workers import Found, Kind, predicted_workers
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.gpu_fleet.reading import FleetReading
from formulations.gpu_fleet.tables import device_name
from formulations.reading import Reading
from planner import catalog
from planner.deploy_plan import DeployPlan, PodTemplate
from planner.descriptions.base import COLLECT_PROBLEMS
from planner.descriptions.deploy import DeployInstance
from planner.descriptions.efficiency import calibrated
from planner.descriptions.fleet import FleetInstance, FleetLimits, Offer
from planner.errors import DescriptionError, OptionError
from planner.files import Loc, SourceText, canonical_json
from planner.hardware import DeviceKind
from planner.kubernetes.names import HOSTNAME_LABEL
from planner.plan import DeployDocument, read_document
from planner.readers.service_workers import ServiceWorker, read_service_workers

#: What the fleet is told of where its workers come from, when it is not a file of their own.
SEARCHED = "(serving search)"


def read_problem(instance: DeployInstance, source: SourceText | None = None) -> DeployProblem:
    """Read everything that the instance names and build the arrays. Raises DescriptionError with all problems found."""
    return _Reading(instance, source).problem()


class _Reading(Reading):
    """Builds the problem and collects findings at the keys that cause them."""

    def __init__(self, instance: DeployInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance
        #: Places of the fleet's offers and demand in this instance.
        self.offers: list[Loc] = []
        self.demand: list[Loc] = []

    def problem(self) -> DeployProblem:
        instance = self.instance
        current = self._current()
        stands = standing(instance, current, self)
        self.stop_if_wrong()
        offers = (*instance.offers, *(kind.offer for kind in stands.kinds))
        self.offers = [("offers", index) for index in range(len(instance.offers))]
        self.offers += [kind.loc for kind in stands.kinds]
        if not offers:
            self.find(("nodes",), "no GPU is free, and nothing can be rented")
        self.stop_if_wrong()
        described = self._fleet_instance(offers)
        found = self._workers(offers)
        self.stop_if_wrong()
        fleet = _FleetOfServices(self, described, found.workers).problem()
        workers = {(one.service, one.name): one for one in found.workers}
        fleet = replace(
            fleet,
            sha256=self._sha256(stands),
            assumptions=(*fleet.assumptions, *dict.fromkeys(found.notes), *stands.notes),
        )
        if current is not None:
            if fleet.num_periods > 1:
                self.find(("current",), "a deployment in force goes with constant rates, not with hourly ones")
                self.stop_if_wrong()
            running, notes = running_workers(fleet, stands.kinds, current)
            fleet = replace(fleet, assumptions=(*fleet.assumptions, *notes))
            cost = instance.move_cost_usd_per_gpu_hour * fleet.config_gpus
            fleet = replace(fleet, running=running, move_cost=cost.astype(np.float64), max_moves=instance.max_moves)
        self.stop_if_wrong()
        return DeployProblem(
            fleet=fleet,
            workers=workers,
            predicted=found.predicted,
            standing=stands.kinds,
            snapshot=stands.snapshot,
            experts=found.experts,
            current=current,
            unfit=tuple(found.unfit),
            served=found.served,
            template=self._template(stands),
        )

    def _template(self, stands: Standing) -> PodTemplate:
        nodes = () if stands.snapshot is None else stands.snapshot.nodes
        return PodTemplate(
            requests_per_gpu=self.instance.requests_per_gpu,
            tolerations=self.instance.tolerations,
            hostnames={node.name: node.labels.get(HOSTNAME_LABEL, node.name) for node in nodes},
        )

    def _fleet_instance(self, offers: Sequence[Offer]) -> FleetInstance:
        """The same in the terms of a fleet; what it finds wrong is told at our keys."""
        instance = self.instance
        demand = []
        for index, service in enumerate(instance.services):
            for place, one in enumerate(service.demand):
                self.demand.append(("services", index, "demand", place))
                asked = one.model_dump()
                if one.hourly is not None and instance.hours is not None:
                    asked["hourly"] = _stretched(one.hourly, instance.hours)
                    if isinstance(one.burst, tuple):
                        asked["burst"] = _stretched(one.burst, instance.hours)
                demand.append({"model": service.name, **asked})
        models = [
            {
                name: getattr(service, name)
                for name in ("name", "slo", "regions", "priority", "min_replicas", "kv_bytes_per_token")
            }
            | {"model": service.model, "precision": service.precision, "backend": service.backend}
            | ({} if instance.workers is None else {"gpus_per_replica": service.gpus_per_worker})
            for service in instance.services
        ]
        limits = {name: getattr(instance, name) for name in FleetLimits.model_fields}
        said = {
            "name": instance.name,
            "offers": offers,
            "models": models,
            "demand": demand,
            "slo": instance.slo,
            "workers": instance.workers or SEARCHED,
            "headroom": instance.headroom,
            "spare_instances": instance.spare,
        }
        try:
            described = FleetInstance.model_validate(said | limits, context={COLLECT_PROBLEMS: True})
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_input=False, include_context=False):
                self.find(self.place(wrong["loc"]), wrong["msg"])
            self.stop_if_wrong()
            raise
        for loc, message in described.all_problems():
            self.find(self.place(loc), message)
        self.stop_if_wrong()
        return described

    def place(self, loc: Loc) -> Loc:
        """A key of the fleet as a key of this instance."""
        head, rest = loc[0], loc[1:]
        if head in ("demand", "offers") and rest and isinstance(rest[0], int):
            known = self.demand if head == "demand" else self.offers
            return (*known[rest[0]], *rest[1:])
        names = {"demand": "services", "models": "services", "headroom": "utilisation", "spare_instances": "spare"}
        return (names.get(str(head), head), *rest)

    def _workers(self, offers: Sequence[Offer]) -> Found:
        """From the table, or from the serving search on every kind of GPU that is offered or stands."""
        instance = self.instance
        if instance.workers is not None:
            return self._tabled(instance.workers, offers)
        kinds: dict[str, Kind] = {}
        for index, offer in enumerate(offers):
            try:
                described = self.device(offer.device)
            except (OptionError, DescriptionError) as error:
                self.find((*self.offers[index], *(("device",) if len(self.offers[index]) > 1 else ())), str(error))
                continue
            nodes = instance.max_nodes_per_worker if offer.max_count is None else offer.max_count
            device = described.name
            known = kinds.get(device)
            larger = known is None or offer.gpus > known.gpus
            network = offer.network_bytes_per_s
            if larger:
                kinds[device] = Kind(described, offer.gpus, min(instance.max_nodes_per_worker, max(1, nodes)), network)
            elif known is not None and offer.gpus == known.gpus:
                most = min(instance.max_nodes_per_worker, max(known.nodes, nodes))
                slower = min((one for one in (network, known.network_bytes_per_s) if one is not None), default=None)
                kinds[device] = Kind(described, offer.gpus, most, slower)
        self.stop_if_wrong()
        coefficients = None if instance.calibration is None else calibrated(self.path(instance.calibration))
        found = predicted_workers(instance, list(kinds.values()), coefficients, self)
        if coefficients is not None:
            found.notes.append(f"calibrated by {instance.calibration}")
        return found

    def device(self, name: str) -> DeviceKind:
        """A kind of GPU by its name, the instance's own first; OptionError or DescriptionError for an unknown one."""
        own = catalog.devices.by_any_name(self.instance.devices)
        return own.get(catalog.devices.folded(name)) or catalog.device(name)

    def _tabled(self, path: str, offers: Sequence[Offer]) -> Found:
        table = list(read_service_workers(self.path(path), self.instance.name))
        told = {one.service for one in table}
        for index, service in enumerate(self.instance.services):
            if service.name not in told:
                self.find(("services", index), f"{service.name} has no worker in {path}")
        experts: dict[tuple[str, int, int], ExpertPlacementProblem] = {}
        node = max(offer.gpus for offer in offers)
        for one in table:
            shared, loads = sharing(one), self.instance.loads.get(one.service)
            if shared is None or not loads or (one.service, *shared) in experts:
                continue
            try:
                experts[one.service, *shared] = expert_problem(one.service, loads, *shared, node, self.source)
            except DescriptionError as error:
                for finding in error.findings:
                    self.find(("loads", one.service), finding.message)
                break
        notes = ["throughput and latency of workers are those of the table, how even experts lie included"]
        return Found(table, {}, experts, notes)

    def _current(self) -> DeployPlan | None:
        """The deployment in force; what it rents must still be offered."""
        path = self.instance.current
        if path is None:
            return None
        document = read_document(self.path(path))
        if not isinstance(document, DeployDocument) or document.plan is None:
            self.find(("current",), f"{path} holds no plan of a deployment")
            self.stop_if_wrong()
            return None
        for wrong in check_alone(document.plan)[:MOST_TOLD]:
            self.find(("current",), f"{path}: {wrong.message}")
        offers = {offer.name: offer for offer in self.instance.offers}
        for row in document.plan.nodes:
            if row.offer is None:
                continue
            if row.offer not in offers:
                self.find(("current",), f"{path} rents {row.offer!r}, which is not offered")
            elif (device_name(row.device), row.gpus) != (
                device_name(offers[row.offer].device), offers[row.offer].gpus
            ):  # fmt: skip
                message = f"{path} rents {row.offer!r} as {row.gpus} x {row.device}, it is offered as"
                self.find(("current",), f"{message} {offers[row.offer].gpus} x {offers[row.offer].device}")
        self.stop_if_wrong()
        return document.plan

    def _sha256(self, stands: Standing) -> str:
        instance = self.instance
        digest = hashlib.sha256(canonical_json(instance.model_dump(mode="json", exclude_defaults=True)).encode())
        digest.update(b"" if stands.snapshot is None else stands.snapshot.digest.encode())
        names = [instance.workers, instance.calibration, instance.current]
        names += [one.model for one in instance.services if one.model is not None and one.model.endswith(".json")]
        names += [one.file for loads in instance.loads.values() for one in loads]
        for name in names:
            if name is not None:
                digest.update(self.path(name).read_bytes())
        return digest.hexdigest()


class _FleetOfServices(FleetReading):
    """The fleet's own reader, which tells what it finds at the keys of the deployment."""

    def __init__(self, outer: _Reading, instance: FleetInstance, workers: Sequence[ServiceWorker]) -> None:
        super().__init__(instance, outer.source, workers)
        self.outer = outer
        self.findings = outer.findings

    def find(self, loc: Loc, message: str) -> None:
        self.outer.find(self.outer.place(loc), message)

    def _device(self, index: int, offer: Offer) -> DeviceKind | None:
        """Own kinds are no mistake, and others are told where workers are made for them."""
        try:
            return self.outer.device(offer.device)
        except (OptionError, DescriptionError):
            return None

    def _files(self) -> Iterator[str]:
        """The hash is taken over the deployment."""
        return iter(())


def _stretched(values: Sequence[float], hours: Sequence[int]) -> tuple[float, ...]:
    """One value for each hour of so many that each stands for."""
    return tuple(value for value, length in zip(values, hours, strict=True) for _ in range(length))
