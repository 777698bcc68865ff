"""From a `layers` instance to the arrays: memory and time of a layer from the model and the catalogue, or as given."""

from __future__ import annotations

import hashlib

import numpy as np

from formulations.parallelism.layers.problem import FloatArray, LayersProblem, Needs, capacities
from formulations.reading import Reading
from planner import catalog
from planner.cost.layers import LAYER_OVERHEAD_S, Hops, roofline_s
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.descriptions.layers import EqualLayers, LayersInstance, PoolDevices
from planner.errors import OptionError
from planner.files import SourceText, canonical_json
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec

#: Bytes of one element of the activations that stages hand over: 16 bit.
ACTIVATION_BYTES = 2.0


def read_problem(instance: LayersInstance, source: SourceText | None = None) -> LayersProblem:
    """Look up the model and the devices and build the arrays. Raises DescriptionError with all problems found."""
    return _Reading(instance, source).problem()


class _Reading(Reading):
    """Builds the arrays and collects findings at the keys that cause them."""

    def __init__(self, instance: LayersInstance, source: SourceText | None) -> None:
        super().__init__(source)
        self.instance = instance
        self.assumptions: list[str] = []

    def problem(self) -> LayersProblem:
        instance = self.instance
        spec = None if isinstance(instance.model, EqualLayers) else self._model(instance.model)
        kinds = [self._kind(index, one) for index, one in enumerate(instance.devices)]
        self.stop_if_wrong()
        model = self._layers(spec)
        layer_s, head_s = self._times(spec, model, kinds)
        # A pipeline keeps caches of `kv_tokens`, or of one step's sequences.
        held = float(instance.kv_tokens or instance.batch * instance.context_tokens)
        needs = Needs(
            weight_bytes=model.layer_bytes,
            cache_bytes=held * model.kv_bytes_per_token,
            embedding_bytes=model.embedding_bytes,
            head_bytes=model.head_bytes,
            room_bytes=np.array(
                [
                    instance.memory_share * (one.memory_bytes or (kind.known_memory_bytes if kind else 0.0))
                    for one, kind in zip(instance.devices, kinds, strict=True)
                ]
            ),
        )
        names = () if instance.sites is None else instance.sites.names
        in_flight = np.inf
        if instance.kv_tokens is not None:
            in_flight = float(instance.kv_tokens // (instance.batch * instance.context_tokens))
        else:
            self.assumptions.append("caches are counted for one step's sequences: give kv_tokens for all under way")
        return LayersProblem(
            name=instance.name,
            sha256=self._sha256(),
            num_layers=model.num_layers,
            names=tuple(one.name for one in instance.devices),
            site_names=names,
            site=np.array([names.index(one.site) if one.site else 0 for one in instance.devices], dtype=np.int64),
            count=np.array([one.count for one in instance.devices], dtype=np.int64),
            layer_s=layer_s,
            head_s=head_s,
            cap=capacities(model.num_layers, needs),
            hops=self._hops(model.hand_over_bytes * instance.batch),
            batch=instance.batch,
            max_latency_s=np.inf if instance.max_latency_s is None else instance.max_latency_s,
            in_flight=in_flight,
            needs=needs,
            assumptions=tuple(self.assumptions),
        )

    def _model(self, name: str) -> ModelSpec | None:
        """The model in the precision that it is served in; None, and a finding, when there is none."""
        precision = self.instance.precision or ""
        try:
            spec = catalog.model(self.base_dir / name if name.endswith(".json") else name)
        except OptionError as error:
            self.find(("model",), str(error))
            return None
        if precision and precision not in WEIGHT_FORMATS:
            self.find(("precision",), f"{precision!r} is no format; choose from {', '.join(WEIGHT_FORMATS)}")
            return None
        return served(spec, precision, precision)

    def _kind(self, index: int, one: PoolDevices) -> DeviceKind | None:
        """The catalogue's device; None where everything is given, and a finding where something is missing."""
        if one.memory_bytes is not None and one.layer_s is not None and one.device is None:
            return None
        try:
            return catalog.device(one.device or one.name)
        except OptionError as error:
            missing = "" if one.device else "; or give memory_bytes and layer_s"
            self.find(("devices", index, "device" if one.device else "name"), f"{error}{missing}")
            return None

    def _layers(self, spec: ModelSpec | None) -> EqualLayers:
        """The model as equal layers: the largest counts for all, so that any cut fits."""
        if spec is None:
            assert isinstance(self.instance.model, EqualLayers)
            return self.instance.model
        sizes = {layer.weight_bytes for layer, _ in spec.layer_groups()}
        if len(sizes) > 1:
            self.assumptions.append("the layers are not equal: memory and time are of the largest")
        outer = spec.weight_bytes_by_component
        embedding = float(outer.get("embedding", 0))
        elements = kv_element_bytes(spec, "vllm")
        return EqualLayers(
            num_layers=spec.num_hidden_layers,
            layer_bytes=float(max(sizes)),
            embedding_bytes=embedding,
            # A tied head is the embedding once more where the last stage is another device.
            head_bytes=embedding if spec.tie_word_embeddings else float(outer.get("head", 0)),
            kv_bytes_per_token=spec.kv_bytes_per_token(elements) / spec.num_hidden_layers,
            hand_over_bytes=ACTIVATION_BYTES * spec.hidden_size,
        )

    def _times(
        self, spec: ModelSpec | None, model: EqualLayers, kinds: list[DeviceKind | None]
    ) -> tuple[FloatArray, FloatArray]:
        """Time of a layer and of the head in one step, as given or by roofline."""
        instance = self.instance
        layer_s, head_s = [], []
        batch, context = instance.batch, instance.context_tokens
        for one, kind in zip(instance.devices, kinds, strict=True):
            if one.layer_s is not None:
                layer_s.append(one.layer_s)
                head_s.append(one.head_s or 0.0)
                continue
            assert spec is not None
            assert kind is not None
            flops = max(layer.linear_flops_per_token for layer, _ in spec.layer_groups())
            attention = float(spec.attention_flops_per_token(context)) / spec.num_hidden_layers
            cache = float(spec.kv_read_bytes(context, kv_element_bytes(spec, "vllm"))) / spec.num_hidden_layers
            time_s = roofline_s(kind, batch * (flops + attention), model.layer_bytes + batch * cache)
            layer_s.append(time_s + LAYER_OVERHEAD_S)
            head_flops = 2.0 * batch * spec.vocab_size * spec.hidden_size
            head_s.append(roofline_s(kind, head_flops, model.head_bytes) if one.head_s is None else one.head_s)
        if any(one.layer_s is None for one in instance.devices):
            self.assumptions.append("times of layers are a roofline at the shares of peak that decode steps reach")
        return np.array(layer_s), np.array(head_s)

    def _hops(self, step_bytes: float) -> Hops:
        local, sites = self.instance.local_link, self.instance.sites
        size = 1 if sites is None else len(sites.names)
        step_s, return_s, steps = (np.full((size, size), np.inf) for _ in range(3))
        for i in range(size):
            for j in range(size):
                if i == j:
                    bandwidth, latency = local.bandwidth_bytes_per_s, local.latency_s
                else:
                    assert sites is not None
                    given, time_s = sites.bandwidth_bytes_per_s[i][j], sites.latency_s[i][j]
                    if given is None or time_s is None:
                        steps[i, j] = 0.0
                        continue
                    bandwidth, latency = given, time_s
                return_s[i, j] = latency
                step_s[i, j] = latency
                if bandwidth is not None and step_bytes:
                    step_s[i, j] += step_bytes / bandwidth
                    steps[i, j] = bandwidth / step_bytes
        return Hops(step_s=step_s, return_s=return_s, steps_per_s=steps)

    def _sha256(self) -> str:
        digest = hashlib.sha256(canonical_json(self.instance.model_dump(mode="json", exclude_defaults=True)).encode())
        model = self.instance.model
        if isinstance(model, str) and model.endswith(".json"):
            digest.update((self.base_dir / model).read_bytes())
        return digest.hexdigest()
