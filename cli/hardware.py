"""What `gpuplan catalog devices|links|nodes` shows: a table, or one entry with the source of every number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.hardware import DeviceKind, Link, NodeShape, Sourced

#: Order in which formats are listed.
DTYPES = ("bf16", "fp16", "fp8", "int8", "fp4")


def document(one: Sourced) -> dict[str, Any]:
    """One entry as JSON, SI units; `facts` has the source and confidence of every number, `notes` what is doubtful."""
    from planner.hardware import DeviceKind

    told: dict[str, Any] = one.model_dump(mode="json")
    told["facts"] = {name: one.fact(name).model_dump(mode="json") for name in one.numbers()}
    if isinstance(one, DeviceKind):
        from planner.plausibility import device_notes

        told["notes"] = list(device_notes(one))
    return told


def show_devices(name: str | None, as_json: bool) -> None:
    """Print all accelerators, or one by name or from a file; errors are told by the caller."""
    from planner import catalog

    columns = ("device", "memory", "bandwidth", "16 bit", "FP8", "FP4", "scale-up", "GPUs", "power")
    _show(name, as_json, catalog.device_names(), _device, columns, _device_row)


def show_links(name: str | None, as_json: bool) -> None:
    """Print all links, or one."""
    from planner import catalog

    columns = ("link", "kind", "GB/s, one way", "Gbit/s", "counted per", "latency")
    _show(name, as_json, catalog.link_names(), catalog.link, columns, _link_row)


def show_nodes(name: str | None, as_json: bool) -> None:
    """Print all node shapes, or one."""
    from planner import catalog

    columns = ("node", "provider", "GPUs", "device", "network", "scale-up domain", "vCPUs", "host memory")
    _show(name, as_json, catalog.node_names(), catalog.node, columns, _node_row)


def _device(name: str) -> DeviceKind:
    from planner import catalog
    from planner.files import read_as
    from planner.hardware import DeviceKind

    if name == "-" or Path(name).suffix in (".yaml", ".yml", ".json"):
        return read_as(name, DeviceKind)
    return catalog.device(name)


def _show(
    name: str | None, as_json: bool, names: tuple[str, ...], find: Any, columns: tuple[str, ...], row: Any
) -> None:
    from cli.render import console, table
    from cli.solving import print_json

    if name is not None:
        one = find(name)
        if as_json:
            print_json(document(one))
        else:
            _print_one(one)
    elif as_json:
        print_json([document(find(known)) for known in names])
    else:
        console().print(table(columns, [row(find(known)) for known in names]))


def _print_one(one: Sourced) -> None:
    from cli.render import console, printable, table

    out = console()
    told = document(one)
    out.print(printable(told["name"]), style="bold", soft_wrap=True)
    words = {key: value for key, value in told.items() if isinstance(value, str) and value and key not in _HEADINGS}
    for key, value in words.items():
        out.print(f"  {key.replace('_', ' ')}: {printable(value)}", soft_wrap=True)
    if told.get("aliases"):
        out.print(f"  also called: {printable(', '.join(told['aliases']))}", soft_wrap=True)
    rows = [
        (name, _quantity(name, value), fact["confidence"], printable(fact["source"]), printable(fact["note"]))
        for (name, value), fact in zip(one.numbers().items(), told["facts"].values(), strict=True)
    ]
    out.print(table(("number", "value", "confidence", "source", "note"), rows, text_width=48))
    for line in (told["note"], *told.get("notes", ())):
        if line:
            out.print(f"  - {printable(line)}", soft_wrap=True)


#: Told in their own place.
_HEADINGS = ("name", "note", "source", "confidence")


def _device_row(one: DeviceKind) -> tuple[str, ...]:
    rates = {dtype: f"{_short(one.flop_per_s[dtype] / 1e12)} T" for dtype in DTYPES if dtype in one.flop_per_s}
    scale_up = one.scale_up_bandwidth_bytes_per_s
    return (
        one.name,
        _quantity("memory_bytes", one.memory_bytes),
        _quantity("hbm_bandwidth_bytes_per_s", one.hbm_bandwidth_bytes_per_s),
        rates.get("bf16", rates.get("fp16", "-")),
        rates.get("fp8", "-"),
        rates.get("fp4", "-"),
        "-" if scale_up is None else f"{one.scale_up_link} {_quantity('_bytes_per_s', scale_up)}".strip(),
        str(one.scale_up_domain_gpus),
        "-" if one.power_w is None else _quantity("power_w", one.power_w),
    )


def _link_row(one: Link) -> tuple[str, ...]:
    gbyte = one.bandwidth_bytes_per_s / 1e9
    latency = "-" if one.latency_s is None else _quantity("latency_s", one.latency_s)
    return one.name, one.kind, _short(gbyte), _short(8 * gbyte), one.per, latency


def _node_row(one: NodeShape) -> tuple[str, ...]:
    return (
        one.name,
        one.provider,
        str(one.gpus),
        one.device,
        f"{_short(one.nic_bandwidth_bytes_per_s * 8 / 1e9)} Gbit/s",
        str(one.scale_up_domain_gpus),
        str(one.vcpus),
        _quantity("host_memory_bytes", one.host_memory_bytes),
    )


def _short(value: float) -> str:
    """Five significant digits, thousands apart, no exponent."""
    return f"{float(f'{value:.5g}'):,g}"


def _quantity(name: str, value: float) -> str:
    """A number in the unit that its name says, as datasheets write it; binary where it is so sold."""
    from planner.units import format_bytes, format_seconds

    if name == "memory_bytes":
        return f"{_short(value / 1e9)} GB"
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("bytes_per_s"):
        return f"{_short(value / 1e9)} GB/s"
    if name.startswith("flop_per_s"):
        return f"{_short(value / 1e12)} TFLOP/s"
    if name == "latency_s":
        return format_seconds(value)
    return f"{_short(value)} W" if name == "power_w" else f"{value:g}"
