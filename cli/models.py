"""What `gpuplan catalog models` shows: the list of models, or one model's parameters, memory, cache and FLOP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from planner.model import Layer, ModelSpec

#: Context lengths at which the table shows cache and attention FLOP, tokens.
CONTEXTS = (1_024, 8_192, 131_072)


def document(spec: ModelSpec) -> dict[str, Any]:
    """One model as JSON: counts by the named rules, and one object a decoder layer.

    kv_bytes_per_token counts every layer that holds a token, with 16-bit elements; `_full` and `_window` are its parts
    outside and inside sliding windows. MTP layers are apart from the totals.
    """
    from planner.model import ACTIVE_RULE, KV_ELEMENT_BYTES

    full, window, index = (_whole(count * KV_ELEMENT_BYTES) for count in spec.kv_elements_per_token)
    return {
        "name": spec.name,
        "model_type": spec.model_type,
        "total_params": spec.total_params,
        "active_params": spec.active_params,
        "active_rule": ACTIVE_RULE,
        "active_params_without_embedding": spec.active_params_without_embedding,
        "mtp_params": spec.mtp_params,
        "components": dict(spec.parameters_by_component),
        "weight_bytes": spec.weight_bytes,
        "weight_bytes_by_component": dict(spec.weight_bytes_by_component),
        "weight_bytes_by_format": dict(spec.weight_bytes_by_format),
        "mtp_weight_bytes": spec.mtp_weight_bytes,
        "weight_dtype": spec.weight_dtype,
        "quant_method": spec.quant_method,
        "kv_bytes_per_token": _whole(spec.kv_bytes_per_token()),
        "kv_bytes_per_token_full": full,
        "kv_bytes_per_token_window": window,
        "index_bytes_per_token": index,
        "kv_element_bytes": _whole(KV_ELEMENT_BYTES),
        "checkpoint_kv_dtype": spec.kv_dtype,
        "state_bytes_per_sequence": spec.state_bytes_per_sequence,
        "linear_flops_per_token": spec.linear_flops_per_token,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "max_position_embeddings": spec.max_position_embeddings,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "layers": [_layer(position, layer) for position, layer in enumerate(spec.layers)],
        "assumptions": list(spec.assumptions),
        "source": spec.source,
    }


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _layer(position: int, layer: Layer) -> dict[str, Any]:
    from planner.model import KV_ELEMENT_BYTES

    attention, mlp = layer.attention, layer.mlp
    return {
        "index": position,
        "attention": attention.kind.value,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "window": attention.window or None,
        "index_topk": attention.index_topk or None,
        "mlp": mlp.kind.value,
        "intermediate_size": mlp.intermediate_size or None,
        "num_experts": mlp.num_experts,
        "num_experts_per_tok": mlp.num_experts_per_tok,
        "moe_intermediate_size": mlp.moe_intermediate_size or None,
        "params": layer.parameters,
        "active_params": layer.active_parameters,
        "weight_bytes": layer.weight_bytes,
        "kv_bytes_per_token": _whole((attention.kv_elements + attention.window_elements) * KV_ELEMENT_BYTES),
        "state_bytes_per_sequence": attention.state_bytes,
        "linear_flops_per_token": layer.linear_flops_per_token,
    }


def listing() -> list[dict[str, Any]]:
    """All models of the catalogue as JSON: name, counts and source."""
    from planner.catalog.models import entry, model, model_names

    rows = []
    for name in model_names():
        spec, facts = model(name), entry(name)
        rows.append(
            {
                "name": name,
                "aliases": list(facts.aliases),
                "total_params": spec.total_params,
                "active_params": spec.active_params,
                "weight_bytes": spec.weight_bytes,
                "kv_bytes_per_token": _whole(spec.kv_bytes_per_token()),
                "source": facts.source,
            }
        )
    return rows


def print_listing(out: Console) -> None:
    """The catalogue as a table."""
    from cli.render import table
    from planner.units import format_bytes

    rows = [
        (
            one["name"],
            billions(one["total_params"]),
            billions(one["active_params"]),
            format_bytes(one["weight_bytes"]),
            format_bytes(one["kv_bytes_per_token"]),
        )
        for one in listing()
    ]
    out.print(table(("model", "parameters", "active", "weights", "KV a token"), rows))


def print_model(out: Console, spec: ModelSpec) -> None:
    """One model for people: counts, where the weights are, cache by context, layers by kind, assumptions."""
    from cli.render import printable, table
    from planner.units import format_bytes

    out.print(f"{printable(spec.name)}: {_summary(spec)}", style="bold", soft_wrap=True)
    parts, sizes = spec.parameters_by_component, spec.weight_bytes_by_component
    rows = [(name.replace("_", " "), billions(count), format_bytes(sizes[name])) for name, count in parts.items()]
    rows.append(("total", billions(spec.total_params), format_bytes(spec.weight_bytes)))
    if spec.mtp:
        rows.append(("mtp, apart", billions(spec.mtp_params), format_bytes(spec.mtp_weight_bytes)))
    out.print(table(("weights", "parameters", "bytes"), rows))
    out.print(table(("layers", "attention", "MLP", "KV a token", "state a sequence"), _layer_rows(spec)))
    out.print(table(("context", "cache a sequence", "FLOP a token"), _context_rows(spec)))
    told = [f"active = {_active_rule()}", "cache with 16-bit elements, not divided by any parallelism"]
    if spec.kv_dtype is not None:
        told.append(f"the checkpoint asks for a cache in {printable(spec.kv_dtype)}")
    for line in (*told, *spec.assumptions):
        out.print(f"  - {printable(line)}", soft_wrap=True)


def _active_rule() -> str:
    from planner.model import ACTIVE_RULE

    return ACTIVE_RULE


def _summary(spec: ModelSpec) -> str:
    from planner.units import format_bytes

    active = "" if spec.active_params == spec.total_params else f", {billions(spec.active_params)} active"
    method = f" ({spec.quant_method})" if spec.quant_method else f" ({spec.weight_dtype})"
    return (
        f"{billions(spec.total_params)} parameters{active}, {format_bytes(spec.weight_bytes)} of weights{method}, "
        f"{format_bytes(spec.kv_bytes_per_token())} of cache a token"
    )


def _layer_rows(spec: ModelSpec) -> list[tuple[str, str, str, str, str]]:
    """Layers of one kind in one row; layers that differ in weight formats only are one kind."""
    from planner.units import format_bytes

    kinds: dict[tuple[str, str, str, str], int] = {}
    for layer, count in spec.layer_groups():
        attention, mlp = layer.attention, layer.mlp
        name = attention.kind.value.replace("_", " ")
        if attention.window:
            name += f" {attention.window}"
        if attention.num_key_value_heads:
            name += f", {attention.num_attention_heads} heads, {attention.num_key_value_heads} KV"
        experts = f"{mlp.num_experts_per_tok} of {mlp.num_experts} experts" if mlp.num_experts else mlp.kind.value
        kept = format_bytes(2 * (attention.kv_elements + attention.window_elements))
        key = (name, experts, kept, format_bytes(attention.state_bytes) if attention.state_bytes else "-")
        kinds[key] = kinds.get(key, 0) + count
    return [(str(count), *key) for key, count in kinds.items()]


def _context_rows(spec: ModelSpec) -> list[tuple[str, str, str]]:
    from planner.units import format_bytes

    cache = spec.kv_bytes(CONTEXTS)
    flops = spec.linear_flops_per_token + spec.attention_flops_per_token(CONTEXTS)
    return [
        (f"{tokens:,}", format_bytes(float(held)), f"{float(work):.3g}")
        for tokens, held, work in zip(CONTEXTS, cache, flops, strict=True)
    ]


def billions(count: float) -> str:
    """671026404352 -> '671.0 B'; below a hundred million in M."""
    return f"{count / 1e9:.4g} B" if count >= 1e8 else f"{count / 1e6:.3g} M"


def show(name: str | None, as_json: bool) -> None:
    """Print the list, or one model by catalogue name or path; the errors of both are told by the caller."""
    from cli.render import console
    from cli.solving import print_json
    from planner.catalog.models import model

    if name is None:
        if as_json:
            print_json(listing())
        else:
            print_listing(console())
        return
    spec = model(name)
    if as_json:
        print_json(document(spec))
    else:
        print_model(console(), spec)
