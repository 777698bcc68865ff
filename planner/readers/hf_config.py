"""Hugging Face `config.json` (with `hf_quant_config.json`) -> ModelSpec.

Works for any decoder: known classes bring the traits that no key tells (planner.readers.hf.families), the rest is read
by the generic rule: gated MLP without biases, two RMS norms a layer, norms of queries and keys as `use_qk_norm` says,
biases as `attention_bias` and `mlp_bias` say. Whatever was filled in or left out is told in `assumptions`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import DescriptionError
from planner.files import SourceText, read_text
from planner.model.formats import PLAIN_BITS, WeightFormat, plain
from planner.model.layers import AttentionKind, Component, Layer
from planner.model.spec import ModelSpec
from planner.readers.hf.families import GENERIC, Family, family_of
from planner.readers.hf.fields import MAX_TOKENS, Fields, Notes
from planner.readers.hf.outer import build_layer, mtp_layers, outer_tensors
from planner.readers.hf.quantization import read_quantization, stored, stored_tensor
from planner.readers.hf.schedule import Slot, slots
from planner.readers.hf.sizes import Sizes, read_sizes
from planner.readers.hf.vision import vision_tensors

#: Largest config.json that is read; those with a list of modules for every layer are about 0.2 MB.
MAX_CONFIG_BYTES = 4 * 2**20
#: Longest that matching the module patterns of a quantisation may take; real ones take milliseconds.
MAX_MATCHING_S = 10.0
#: Activations of MLPs that have no gate, in every class that uses them.
UNGATED = ("relu2", "xielu")
#: What the generic rule uses for missing keys, besides the defaults that are told with their values.
GENERIC_RULES: Mapping[str, str] = {
    "head_dim": "hidden_size / num_attention_heads",
    "tie_word_embeddings": "false",
    "attention_bias": "false",
    "mlp_bias": "false",
    "use_qk_norm": "false",
}
#: Where multimodal models keep the language model.
TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "language_model_config")


def read_model(path: str | Path, name: str | None = None) -> ModelSpec:
    """Read a config.json, or a folder that holds one, with the hf_quant_config.json beside it.

    Raises DescriptionError with every problem at its line and column; nothing is allocated in proportion to a number
    of the file.
    """
    place = Path(path)
    if str(path) != "-" and place.is_dir():
        place = place / "config.json"
    source = _parse(place if str(path) != "-" else path)
    beside = None if str(path) == "-" else _quantization_beside(place)
    return from_source(source, name or _name_of(place), beside)


def from_mapping(config: Mapping[str, Any], name: str, origin: str = "") -> ModelSpec:
    """A ModelSpec from the keys of a config.json that are at hand already (a catalogue entry)."""
    return from_source(SourceText(origin or name, "", config, Path()), name)


def from_source(source: SourceText, name: str, beside: SourceText | None = None) -> ModelSpec:
    """A ModelSpec from parsed files; `beside` is hf_quant_config.json."""
    if not isinstance(source.value, Mapping):
        raise DescriptionError.single(source.path, "needs an object with the keys of a config.json", 1, 1)
    notes = Notes(source)
    top = Fields(notes, source.value)
    config, model_type = _text_part(top)
    known = family_of(model_type)
    family = known or GENERIC
    activation = config.values.get("hidden_act")
    if known is None and isinstance(activation, str) and activation in UNGATED:
        family = replace(family, gated=False)
    config.defaults = family.defaults
    if top.values.get("is_encoder_decoder") is True:
        top.problem("is_encoder_decoder", "is true: only decoder models are described")
    made = slots(config, family, model_type)
    latent = all(slot.attention is not AttentionKind.FULL for slot in made) and not _has_local(made)
    sizes = read_sizes(config, family, model_type, latent)
    notes.refuse()
    spec = _assemble(top, config, family, sizes, made, model_type, name, _read_beside(notes, beside))
    notes.refuse()
    if family.note:
        notes.assume(family.note)
    if known is None:
        _tell_generic(config, model_type, family)
    elif notes.defaulted:
        told = ", ".join(f"{key} = {value}" for key, value in sorted(notes.defaulted.items()))
        notes.assume(f"missing keys read as {model_type} defines them: {told}")
    return replace(spec, assumptions=tuple(notes.assumptions))


def _has_local(made: tuple[Slot, ...]) -> bool:
    return any(slot.attention in (AttentionKind.SLIDING, AttentionKind.CHUNKED) for slot in made)


def _text_part(top: Fields) -> tuple[Fields, str]:
    """The language model's keys and its type."""
    outer_type = top.text("model_type")
    section = top.section(*TEXT_SECTIONS)
    if section is None:
        thinker = top.section("thinker_config")
        section = None if thinker is None else thinker.section("text_config")
    if section is None:
        return Fields(top.notes, top.values), outer_type
    return section, section.text("model_type", default=outer_type)


def _assemble(
    top: Fields,
    config: Fields,
    family: Family,
    sizes: Sizes,
    made: tuple[Slot, ...],
    model_type: str,
    name: str,
    beside: Fields | None,
) -> ModelSpec:
    built = {slot: build_layer(config, family, sizes, slot, model_type) for slot in dict.fromkeys(made)}
    quantization = read_quantization(top, config, beside)
    top.notes.refuse()
    own = _own_type(top, config)
    distinct: dict[Layer, Layer] = {}
    layers = []
    started = time.process_time()
    for index, slot in enumerate(made):
        if time.process_time() - started > MAX_MATCHING_S:
            raise DescriptionError.single(
                top.notes.source.path, "the module patterns of its quantisation take too long"
            )
        layer = stored(built[slot], index, quantization, own)
        layers.append(distinct.setdefault(layer, layer))
    tied = _tied(top, config)
    outer = outer_tensors(config, family, sizes, tied, len(made))
    mtp = mtp_layers(config, sizes, tuple(layers))
    vision = vision_tensors(top, top.text("model_type"), sizes.hidden)
    length = config.integer(
        "max_position_embeddings", "model_max_length", "n_positions", default=0, minimum=0, maximum=MAX_TOKENS
    )
    return ModelSpec(
        name=name,
        model_type=model_type,
        hidden_size=sizes.hidden,
        vocab_size=sizes.vocab,
        max_position_embeddings=length or None,
        tie_word_embeddings=tied,
        weight_dtype=own.name,
        quant_method=None if quantization is None else quantization.method,
        kv_dtype=None if quantization is None else quantization.kv_dtype,
        layers=tuple(layers),
        outer=tuple(stored_tensor(one, one.name.removeprefix("model."), quantization, own) for one in outer),
        mtp=tuple(_own_projection(layer, own) for layer in mtp),
        vision=tuple(stored_tensor(one, one.name, None, own) for one in vision),
        source=top.notes.source.path,
    )


def _own_projection(layer: Layer, own: WeightFormat) -> Layer:
    """An MTP layer whose own projection is in the model's type; the rest is stored like the layer it copies."""
    kept = (Component.MTP, Component.NORM)
    tensors = (replace(one, format=own, bias_format=own) if one.component in kept else one for one in layer.tensors)
    return replace(layer, tensors=tuple(tensors))


def _tied(top: Fields, config: Fields) -> bool:
    for fields in (top, config):
        if fields.values.get("tie_word_embeddings") is not None:
            return fields.flag("tie_word_embeddings")
    return config.flag("tie_word_embeddings")


def _own_type(top: Fields, config: Fields) -> WeightFormat:
    """The type of unquantised weights."""
    name = (config.text("torch_dtype", "dtype") or top.text("torch_dtype", "dtype")).removeprefix("torch.")
    if name in PLAIN_BITS:
        return plain(name)
    said = f"type {name[:40]!r} is not known" if name else "torch_dtype is missing"
    top.notes.assume(f"{said}: unquantised weights counted in bfloat16")
    return plain("bfloat16")


def _tell_generic(config: Fields, model_type: str, family: Family) -> None:
    """Say that the class is unknown, which keys were missing, and what stood in for each."""
    notes = config.notes
    mlp = "gated" if family.gated else "ungated"
    kind = f"model_type {model_type[:60]!r} is not known" if model_type else "model_type is missing"
    notes.assume(
        f"{kind}: generic rule used ({mlp} MLP, two RMS norms a layer, biases and query-key norms where a key says so)"
    )
    used = {key: rule for key, rule in GENERIC_RULES.items() if config.found(key) is None} | notes.defaulted
    told = ", ".join(f"{key} = {value}" for key, value in sorted(used.items()))
    notes.assume(f"generic rule, fields missing: {told or 'none'}")


def _name_of(place: Path) -> str:
    """`org--name.json` -> org/name; a config.json is called after its folder."""
    if place.name == "config.json":
        return place.resolve().parent.name
    return place.stem.replace("--", "/", 1)


def _quantization_beside(place: Path) -> SourceText | None:
    names = [f"{place.stem}.hf_quant_config.json"]
    if place.name == "config.json":
        names.insert(0, "hf_quant_config.json")
    found = next((one for one in (place.with_name(name) for name in names) if one.is_file()), None)
    return None if found is None else _parse(found)


def _read_beside(notes: Notes, beside: SourceText | None) -> Fields | None:
    """The file beside config.json, whose problems are placed in it and told together with the others."""
    if beside is None:
        return None
    if not isinstance(beside.value, Mapping):
        raise DescriptionError.single(beside.path, "needs an object with the key quantization", 1, 1)
    inside = Notes(beside, notes.findings, notes.told, notes.defaulted, notes.assumptions)
    return Fields(inside, beside.value)


def _parse(path: str | Path) -> SourceText:
    """JSON as transformers writes it, which includes NaN and Infinity; duplicate keys and deep nesting are refused."""
    text = read_text(path, MAX_CONFIG_BYTES)
    name = "<stdin>" if str(path) == "-" else str(path)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            twice = sorted({key for key in keys if keys.count(key) > 1})[:10]
            raise DescriptionError.single(name, f"duplicate key {', '.join(map(repr, twice))}")
        return result

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise DescriptionError.single(name, f"not valid JSON: {error.msg}", error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:
        raise DescriptionError.single(name, f"not usable JSON: {str(error)[:200]}") from None
    return SourceText(name, text, value, Path())
