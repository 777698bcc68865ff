"""Quantisation of a checkpoint -> the format of each weight: `quantization_config` and `hf_quant_config.json`.

Embeddings, norms, routers, residual mixers and vision towers stay in the model's own type; the output head is
quantised only where the method says so (compressed-tensors and ModelOpt unless their list leaves it out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.model import formats
from planner.model.formats import WeightFormat, grouped_integer
from planner.model.layers import Component, Layer, Tensor
from planner.readers.hf.fields import Fields
from planner.readers.hf.modules import Modules, modules

MAX_MODULES = 65_536
#: ModelOpt's algorithms by the format of the weights.
ALGORITHMS: Mapping[str, WeightFormat] = {
    "FP8": formats.FP8_TENSOR,
    "FP8_PER_CHANNEL_PER_TOKEN": formats.FP8_CHANNEL,
    "FP8_PB_WO": formats.FP8_BLOCK,
    "FP8_PB_REAL": formats.FP8_BLOCK,
    "NVFP4": formats.NVFP4,
    "NVFP4_AWQ": formats.NVFP4,
    "W4A8_NVFP4_FP8": formats.NVFP4,
    "W4A8_MXFP4_FP8": formats.MXFP4,
    "W4A16_MXFP4": formats.MXFP4,
    "MXFP4": formats.MXFP4,
    "MXFP8": formats.MXFP8,
    "W4A16_AWQ": grouped_integer(4, 128, zero_points=False),
    "W4A8_AWQ": grouped_integer(4, 128, zero_points=False),
    "INT8_SQ": formats.INT8_CHANNEL,
    "W8A8_SQ_PER_CHANNEL": formats.INT8_CHANNEL,
    "W8A16": formats.INT8_CHANNEL,
}
_NEVER = (Component.EMBEDDING, Component.ROUTER, Component.RESIDUAL, Component.VISION, Component.NORM)


EVERYTHING, NOTHING = Modules(everything=True), Modules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Which module is stored how: the first rule that has it, unless it is left out.

    experts : format of the routed experts where it differs (`expert_dtype`); experts_only leaves all else alone.
    """

    method: str
    rules: tuple[tuple[Modules, WeightFormat], ...] = ()
    left_out: Modules = NOTHING
    experts: WeightFormat | None = None
    experts_only: bool = False
    head: bool = False
    kv_dtype: str | None = None

    def format_of(self, tensor: Tensor, name: str) -> WeightFormat | None:
        """Format of one weight, or None for the model's own type."""
        routed = tensor.component is Component.ROUTED_EXPERTS
        if tensor.role != "linear" or tensor.component in _NEVER or (self.experts_only and not routed):
            return None
        if tensor.component is Component.HEAD and not self.head:
            return None
        if name.endswith("weights_proj") or name in self.left_out:
            return None
        if routed and self.experts is not None:
            return self.experts
        return next((form for where, form in self.rules if name in where), None)


def stored(layer: Layer, index: int, quantization: Quantization | None, own: WeightFormat) -> Layer:
    """The layer with the format of each of its weights."""
    tensors = tuple(stored_tensor(one, f"layers.{index}.{one.name}", quantization, own) for one in layer.tensors)
    return replace(layer, tensors=tensors)


def stored_tensor(tensor: Tensor, name: str, quantization: Quantization | None, own: WeightFormat) -> Tensor:
    """The weight with its format; a bias stays in the model's own type."""
    if tensor.keeps_format:
        return tensor
    form = None if quantization is None else quantization.format_of(tensor, name)
    return replace(tensor, format=form or own, bias_format=own)


def read_quantization(top: Fields, config: Fields, beside: Fields | None) -> Quantization | None:
    """The quantisation of a checkpoint: `quantization_config` at the top or in the text part, else the file beside."""
    section = config.section("quantization_config") or top.section("quantization_config")
    found = None
    if section is not None:
        found = _from_config(section)
    elif beside is not None:
        found = _from_modelopt(beside.section("quantization") or beside)
    if config.text("expert_dtype") == "fp4" or (section is not None and section.text("expert_dtype") == "fp4"):
        found = replace(found or Quantization(method="fp4"), experts=formats.MXFP4)
    return found


def _from_config(section: Fields) -> Quantization:
    method = section.text("quant_method", default="compressed-tensors" if section.has("config_groups") else "unknown")
    if method == "compressed-tensors":
        return _compressed_tensors(section)
    if method.startswith("modelopt") or section.has("quant_algo"):
        return _from_modelopt(section)
    names = ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "ignore", "exclude_modules")
    left_out = _modules(section, *names)
    form = _format(section, method)
    return Quantization(
        method=method,
        rules=() if form is None else ((EVERYTHING, form),),
        left_out=left_out,
        experts_only=method == "mxfp4",
        kv_dtype=_kv_dtype(section),
    )


def _modules(section: Fields, *names: str) -> Modules:
    patterns = section.strings(*names, most=MAX_MODULES)
    return modules(section, section.found(*names) or names[0], patterns) if patterns else NOTHING


def _format(section: Fields, method: str) -> WeightFormat | None:
    if method in ("fp8", "fbgemm_fp8"):
        block = section.integers("weight_block_size", minimum=1, maximum=65_536)
        if not block:
            return formats.FP8_CHANNEL if method == "fbgemm_fp8" else formats.FP8_TENSOR
        if len(block) != 2:
            section.problem("weight_block_size", f"needs two numbers, got {len(block)}")
            return formats.FP8_BLOCK
        scale = 8 if section.text("scale_fmt") == "ue8m0" else 32
        return replace(formats.FP8_BLOCK, block_rows=block[0], block_columns=block[1], scale_bits=scale)
    if method == "mxfp4":
        return formats.MXFP4
    if method in ("gptq", "awq", "auto-round", "intel/auto-round"):
        bits = section.integer("bits", "w_bit", default=4, maximum=16)
        group = section.integer("group_size", "q_group_size", default=128, minimum=-1, maximum=65_536)
        return grouped_integer(bits, max(group, 0), zero_points=True)
    if method == "bitsandbytes":
        if section.flag("load_in_8bit", "_load_in_8bit"):
            return formats.INT8_CHANNEL
        double = section.flag("bnb_4bit_use_double_quant")
        name = section.text("bnb_4bit_quant_type", default="fp4")
        # 64 elements share a 32-bit scale; double quantisation makes it 8 bits, and 256 of them share a 32-bit one.
        return WeightFormat(
            name=name, bits=4, scale_bits=8 + 32 / 256 if double else 32, block_rows=1, block_columns=64
        )
    if method == "eetq":
        return formats.INT8_CHANNEL
    if section.has("bits"):
        bits = section.integer("bits", maximum=16)
        section.notes.assume(f"quantisation {method!r} is not known: counted as {bits} bits in groups of 128")
        return grouped_integer(bits, 128, zero_points=True)
    section.notes.assume(f"quantisation {method!r} is not known: weights counted in the model's own type")
    return None


def _kv_dtype(section: Fields) -> str | None:
    """Type of the cache that the checkpoint's scales are made for."""
    scheme = section.values.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        inside = Fields(section.notes, scheme, (*section.loc, "kv_cache_scheme"))
        bits = inside.integer("num_bits", default=8, maximum=16)
        return f"fp{bits}" if inside.text("type", default="float") == "float" else f"int{bits}"
    algorithm = section.raw("kv_cache_quant_algo")
    return algorithm.lower()[:40] if isinstance(algorithm, str) and algorithm.lower() != "none" else None


def _from_modelopt(section: Fields) -> Quantization:
    algorithm = section.text("quant_algo", default="none").upper()
    group = section.integer("group_size", default=0, minimum=0, maximum=65_536)
    rules: tuple[tuple[Modules, WeightFormat], ...]
    if algorithm == "MIXED_PRECISION":
        layers = section.section("quantized_layers")
        rules = () if layers is None else tuple(_mixed(layers))
    else:
        form = _algorithm(section, algorithm, group)
        rules = () if form is None else ((EVERYTHING, form),)
    return Quantization(
        method=f"modelopt {algorithm.lower()[:40]}",
        rules=rules,
        left_out=_modules(section, "exclude_modules", "ignore", "modules_to_not_convert"),
        head=True,
        kv_dtype=_kv_dtype(section),
    )


def _mixed(layers: Fields) -> list[tuple[Modules, WeightFormat]]:
    """Modules of mixed precision, gathered by algorithm."""
    names: dict[tuple[str, int], list[str]] = {}
    for name in list(layers.values)[:MAX_MODULES]:
        one = layers.section(name)
        if one is not None:
            group = one.integer("group_size", default=0, minimum=0, maximum=65_536)
            names.setdefault((one.text("quant_algo").upper(), group), []).append(name)
    found = []
    for (algorithm, group), patterns in names.items():
        form = _algorithm(layers, algorithm, group)
        if form is not None:
            found.append((modules(layers, "quantized_layers", patterns), form))
    return found


def _algorithm(section: Fields, algorithm: str, group: int) -> WeightFormat | None:
    form = ALGORITHMS.get(algorithm)
    if form is None:
        if algorithm != "NONE":
            section.notes.assume(f"ModelOpt algorithm {algorithm[:40]!r} is not known: counted in the model's own type")
        return None
    return replace(form, block_columns=group) if group and form.block_columns and form.block_rows == 1 else form


def _compressed_tensors(section: Fields) -> Quantization:
    groups = section.section("config_groups")
    rules = []
    for name in () if groups is None else list(groups.values)[:MAX_MODULES]:
        group = groups.section(name) if groups is not None else None
        weights = None if group is None else group.section("weights")
        if group is None or weights is None:
            continue
        targets = group.strings("targets", most=MAX_MODULES) or ("Linear",)
        where = EVERYTHING if "Linear" in targets else modules(group, "targets", targets)
        rules.append((where, _packed(weights)))
    return Quantization(
        method="compressed-tensors",
        rules=tuple(rules),
        left_out=_modules(section, "ignore"),
        head=True,
        kv_dtype=_kv_dtype(section),
    )


def _packed(weights: Fields) -> WeightFormat:
    """One weight scheme of compressed-tensors; scales are in `scale_dtype`, else in 16 bits."""
    bits = weights.integer("num_bits", default=8, maximum=16)
    strategy = weights.text("strategy", default="tensor")
    group = weights.integer("group_size", default=0, minimum=-1, maximum=65_536)
    scale = formats.PLAIN_BITS.get(weights.text("scale_dtype").removeprefix("torch."), 16)
    kind = "fp" if weights.text("type", default="int") == "float" else "int"
    if kind == "fp" and bits == 4:
        base = formats.NVFP4 if strategy == "tensor_group" or group == 16 else formats.MXFP4
        return replace(base, block_columns=group) if group > 0 else base
    if strategy == "block":
        shape = weights.integers("block_structure", minimum=1, maximum=65_536) or (128, 128)
        if len(shape) != 2:
            weights.problem("block_structure", f"needs two numbers, got {len(shape)}")
            shape = (128, 128)
        return replace(
            formats.FP8_BLOCK,
            name=f"{kind}{bits}_block",
            bits=bits,
            scale_bits=scale,
            block_rows=shape[0],
            block_columns=shape[1],
        )
    if strategy == "tensor":
        return WeightFormat(name=f"{kind}{bits}", bits=bits, tensor_bits=scale)
    made = grouped_integer(bits, max(group, 0), not weights.flag("symmetric", default=True), scale)
    return replace(made, name=f"{kind}{bits}" if group > 0 else f"{kind}{bits}_channel")
