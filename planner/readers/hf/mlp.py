"""Weights of one layer's MLP: dense, or routed experts with a router and shared experts."""

from __future__ import annotations

from dataclasses import replace

from planner.model.formats import plain
from planner.model.layers import Component, Mlp, MlpKind, Tensor
from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_EXPERTS, Fields
from planner.readers.hf.schedule import TOP_K, Slot, num_experts
from planner.readers.hf.sizes import Sizes

Block = tuple[Mlp, list[Tensor]]


def mlp_block(config: Fields, family: Family, sizes: Sizes, slot: Slot) -> Block:
    """What the MLP of one layer is made of."""
    if slot.mlp is MlpKind.NONE:
        square = Tensor(name="mlp.linear", component=Component.DENSE_MLP, rows=sizes.hidden, columns=sizes.hidden)
        return Mlp(kind=MlpKind.NONE), [square] if slot.mlp_linear else []
    width = slot.intermediate_size or sizes.intermediate
    if config.flag("use_double_wide_mlp") and not slot.stores_kv:
        width *= 2
    if slot.mlp is MlpKind.MOE:
        return _experts(config, family, sizes, width)
    dense = _matrices("mlp", Component.DENSE_MLP, width, sizes.hidden, family.gated, sizes.mlp_bias)
    return Mlp(kind=MlpKind.DENSE, intermediate_size=width, gated=family.gated), dense


def _matrices(
    name: str, part: Component, width: int, hidden: int, gated: bool, bias: bool, copies: int = 1, active: int = 1
) -> list[Tensor]:
    """Gate, up and down projection; routed experts are named by the first of them."""
    parts = [("gate_proj", width, hidden)] if gated else []
    return [
        Tensor(
            name=f"{name}.{part_name}",
            component=part,
            rows=rows,
            columns=columns,
            bias=bias,
            copies=copies,
            active=active,
        )
        for part_name, rows, columns in (*parts, ("up_proj", width, hidden), ("down_proj", hidden, width))
    ]


def _experts(config: Fields, family: Family, sizes: Sizes, dense_width: int) -> Block:
    count, part = num_experts(config), Component.ROUTED_EXPERTS
    active = config.integer(*TOP_K, maximum=MAX_EXPERTS)
    if active > count:
        config.problem(config.found(*TOP_K) or TOP_K[0], f"is {active} of {count} experts")
    width = config.integer("moe_intermediate_size", "intermediate_size", default=sizes.intermediate, rule="dense width")
    outer, latent = sizes.hidden, config.integer("routed_expert_hidden_size", "moe_latent_size", default=0)
    tensors = [
        _router(family, count, outer),
        *_matrices(
            "mlp.experts.0", part, width, latent or outer, family.gated, family.expert_bias, count, min(active, count)
        ),
    ]
    if latent:
        shared = Component.SHARED_EXPERTS
        for name, rows, columns in (("down", latent, outer), ("up", outer, latent)):
            latent_name = f"mlp.latent_{name}_proj"
            tensors.append(Tensor(name=latent_name, component=shared, rows=rows, columns=columns, bias=sizes.mlp_bias))
        if config.flag("latent_moe_use_norm"):
            tensors.append(Tensor(name="mlp.latent_norm", component=Component.NORM, rows=latent, role="vector"))
    shared_width = _shared_width(config, family, width)
    if shared_width:
        part = Component.SHARED_EXPERTS
        tensors += _matrices("mlp.shared_experts", part, shared_width, outer, family.gated, sizes.mlp_bias)
    if shared_width and config.has("shared_expert_intermediate_size"):
        tensors.append(Tensor(name="mlp.shared_expert_gate", component=Component.ROUTER, rows=1, columns=outer))
    beside = 0
    if config.flag("enable_moe_block"):
        beside = dense_width
        tensors += _beside_dense(config, family, sizes, dense_width, count)
    return (
        Mlp(
            kind=MlpKind.MOE,
            intermediate_size=beside,
            gated=family.gated,
            num_experts=count,
            num_experts_per_tok=active,
            moe_intermediate_size=width,
            shared_intermediate_size=shared_width,
        ),
        tensors,
    )


def _router(family: Family, count: int, hidden: int) -> Tensor:
    own = plain(family.router_dtype) if family.router_dtype else None
    gate = Tensor(name="mlp.gate", component=Component.ROUTER, rows=count, columns=hidden, bias=family.router_bias)
    return gate if own is None else replace(gate, format=own, keeps_format=True)


def _beside_dense(config: Fields, family: Family, sizes: Sizes, width: int, count: int) -> list[Tensor]:
    """Gemma 4: every layer has a dense MLP beside its experts, three more norms and gains in the router."""
    gains = [("mlp.gate.scale", sizes.hidden), ("mlp.gate.per_expert_scale", count)]
    return [
        *_matrices("mlp", Component.DENSE_MLP, width, sizes.hidden, family.gated, sizes.mlp_bias),
        *(Tensor(name=name, component=Component.ROUTER, rows=size, role="vector") for name, size in gains),
        Tensor(name="mlp.norms", component=Component.NORM, rows=3 * sizes.hidden, role="vector"),
    ]


def _shared_width(config: Fields, family: Family, width: int) -> int:
    """Width of all shared experts of a layer together: given as a width, as a number of experts, or by the class."""
    names = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size")
    if config.has(*names):
        return config.integer(*names, minimum=0)
    if family.shared_expert:
        return width
    numbers = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
    if isinstance(config.raw(*numbers), list):
        counts = config.integers(*numbers, maximum=MAX_EXPERTS) or (0,)
        config.notes.assume("shared experts differ by layer: the first layer's number is used")
        return max(counts[0], 0) * width
    return config.integer(*numbers, default=0, minimum=0, maximum=MAX_EXPERTS) * width
