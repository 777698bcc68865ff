"""The hardware catalogue: every number has a source, equals the tables it comes from, and can be overridden."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from planner import catalog
from planner.catalog.devices import folded
from planner.errors import DescriptionError, OptionError
from planner.files import read_as
from planner.hardware import DeviceKind, Link, Sourced
from planner.plausibility import device_notes, link_notes

DEVICES = [catalog.device(name) for name in catalog.device_names()]
LINKS = [catalog.link(name) for name in catalog.link_names()]
NODES = [catalog.node(name) for name in catalog.node_names()]
EVERYTHING: list[Sourced] = [*DEVICES, *LINKS, *NODES]
CONTRACT = [
    "h100_sxm",
    "h200_sxm",
    "h800_sxm",
    "b200_sxm",
    "b300_sxm",
    "gb200",
    "gb300",
    "a100_sxm",
    "l40s",
    "l4",
    "a10g",
    "t4",
    "mi300x",
]
#: The table's 139.8 GiB is "about"; nvidia-smi prints 143771 MiB.
OTHER_USABLE = {"h200_sxm": 143771 * 2**20}

SHEET: dict[str, Any] = {
    "name": "newgpu",
    "memory_bytes": "80GiB",
    "hbm_bandwidth_bytes_per_s": "3.35TB/s",
    "flop_per_s": {"bf16": "989TFLOP/s"},
    "power_w": "700W",
}


def rows(shared_data: Path, name: str) -> list[dict[str, str]]:
    with open(shared_data / "hardware" / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("one", EVERYTHING, ids=lambda one: one.name)
def test_every_number_has_a_source_and_a_confidence(one: Sourced) -> None:
    numbers = one.numbers()
    assert len(numbers) >= (1 if isinstance(one, Link) else 4)
    for name, value in numbers.items():
        fact = one.fact(name)
        assert value > 0
        assert fact.source not in (None, "", "user")
        assert fact.confidence in ("measured", "datasheet", "modelled")
    assert set(one.facts) <= set(numbers)


def test_what_the_driver_reports_is_measured_and_what_is_disputed_is_not_a_datasheet() -> None:
    for kind in DEVICES:
        if kind.usable_memory_bytes is not None:
            assert kind.fact("usable_memory_bytes").confidence == "measured"
            assert 0.9 < kind.usable_memory_bytes / kind.memory_bytes < 1.1
    assert catalog.device("ascend_910c").fact("flop_per_s.bf16").confidence == "modelled"
    assert catalog.link("ib_ndr").fact("latency_s").confidence == "modelled"
    assert "288" in catalog.device("mi325x").fact("memory_bytes").note
    with pytest.raises(KeyError):
        catalog.device("t4").fact("flop_per_s.bf16")


def test_no_two_entries_share_a_name() -> None:
    for kinds in (DEVICES, LINKS, NODES):
        names = Counter(name for kind in kinds for name in {folded(alias) for alias in (kind.name, *kind.aliases)})
        assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names(name: str) -> None:
    assert catalog.device(name).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("h100", "h100_sxm"),
        ("H100-SXM5-80GB", "h100_sxm"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("A100", "a100_sxm"),
        ("a100-80gb", "a100_sxm"),
        ("A100-40G-SXM", "a100_sxm_40gb"),
        ("RTX PRO 6000 Server", "rtx_pro_6000_server"),
        ("Tesla-T4", "t4"),
        ("AMD-Instinct-MI300X-OAM", "mi300x"),
        ("GB200_SXM", "gb200"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert catalog.device(alias).name == name


def test_unknown_names_are_told_with_near_ones() -> None:
    with pytest.raises(OptionError, match="h100_sxm"):
        catalog.device("h10_sxm")
    with pytest.raises(OptionError, match="ib_ndr"):
        catalog.link("ib_nrd")
    with pytest.raises(OptionError, match="catalog nodes"):
        catalog.node("???")


def test_devices_equal_their_table(shared_data: Path) -> None:
    table = rows(shared_data, "gpus.csv")
    assert len(table) == 45
    columns = {
        "bf16": "bf16_tflops",
        "fp16": "fp16_tflops",
        "fp8": "fp8_tflops",
        "int8": "int8_tops",
        "fp4": "fp4_tflops",
    }
    for row in table:
        kind = catalog.device(row["name"])
        card = row["scaleup"] == "PCIe"

        def given(column: str, factor: float, row: dict[str, str] = row) -> float | None:
            return float(row[column]) * factor if row[column] else None

        assert (kind.vendor, kind.architecture) == (row["vendor"], row["arch"])
        assert (kind.form, kind.compute_capability) == (row["form"], row["compute_capability"])
        ours = (
            kind.memory_bytes,
            kind.hbm_bandwidth_bytes_per_s,
            kind.scale_up_bandwidth_bytes_per_s,
            kind.scale_up_domain_gpus,
            kind.pcie_bandwidth_bytes_per_s,
            kind.power_w,
        )
        theirs = (
            given("memory_gb", 1e9),
            given("mem_bw_gbps", 1e9),
            None if card else given("scaleup_gbps_per_dir", 1e9),
            int(row["scaleup_domain"]),
            given("pcie_gbps_per_dir", 1e9),
            given("tdp_w", 1.0),
        )
        assert ours == pytest.approx(theirs), row["name"]
        rates = {dtype: float(row[column]) * 1e12 for dtype, column in columns.items() if row[column]}
        assert kind.flop_per_s == pytest.approx(rates), row["name"]
        if row["memory_usable_gib"]:
            usable = OTHER_USABLE.get(kind.name, float(row["memory_usable_gib"]) * 2**30)
            assert kind.usable_memory_bytes == pytest.approx(usable)
            assert kind.usable_memory_bytes == pytest.approx(float(row["memory_usable_gib"]) * 2**30, rel=0.005)
        if row["k8s_product_label"] != "huawei-Ascend910":  # one label, several chips
            assert not row["k8s_product_label"] or catalog.device(row["k8s_product_label"]) is kind
        disputed = row["confidence"] == "C"
        assert (kind.fact("memory_bytes").confidence == "modelled") == disputed


def test_links_and_nodes_equal_their_tables(shared_data: Path) -> None:
    table = rows(shared_data, "interconnects.csv")
    assert len(table) == len(LINKS) == 32
    for row in table:
        link = catalog.link(row["name"])
        assert (link.kind, link.scope) == (row["kind"], row["scope"])
        assert link.bandwidth_bytes_per_s == pytest.approx(float(row["gb_per_s_per_dir"]) * 1e9)
        latency = float(row["typical_latency_us"]) * 1e-6 if row["typical_latency_us"] else None
        assert link.latency_s == pytest.approx(latency)
        assert link.per == ("node" if "node total" in row["scope"] else link.per)
    table = rows(shared_data, "nodes.csv")
    assert len(table) == len(NODES) == 29
    for row in table:
        node = catalog.node(row["node"])
        assert node.device == catalog.device(row["gpu"]).name
        assert (node.gpus, node.vcpus, node.scale_up_domain_gpus) == tuple(
            int(row[column]) for column in ("gpus", "vcpus", "scaleup_domain")
        )
        assert node.host_memory_bytes == float(row["mem_gib"]) * 2**30
        assert node.nic_bandwidth_bytes_per_s == pytest.approx(float(row["nic_gbit_total"]) * 1e9 / 8)


def test_memory_that_the_cost_model_was_fitted_with() -> None:
    """85.5, 150.7 and 192.2 GB that H100, H200 and B200 report."""
    known = [catalog.device(name).known_memory_bytes / 1e9 for name in ("h100", "h200", "b200")]
    assert known == pytest.approx([85.5, 150.7, 192.2], abs=0.1)
    assert catalog.device("mi300x").known_memory_bytes == 192e9


def test_peak_rates() -> None:
    assert catalog.device("h100").peak_flop_per_s("fp8") == 1978e12
    with pytest.raises(DescriptionError, match="no matrix units for fp4; it runs bf16, fp16, fp8, int8"):
        catalog.device("h100").peak_flop_per_s("fp4")


def test_a_gpu_in_no_table_from_its_datasheet_alone() -> None:
    kind = DeviceKind.model_validate(SHEET)
    assert (kind.memory_bytes, kind.power_w) == (80 * 2**30, 700)
    assert kind.known_memory_bytes == kind.memory_bytes
    assert {kind.fact(name).source for name in kind.numbers()} == {"user"}
    assert device_notes(kind) == ()


def test_a_changed_number_is_the_users_and_the_others_keep_their_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: H100-SXM\nname: capped\npower_w: 500W\nflop_per_s: {fp8: 1500TFLOP/s}\naliases: [h100c]\n")
    kind, base = read_as(path, DeviceKind), catalog.device("h100")
    assert (kind.name, kind.aliases, kind.power_w) == ("capped", ("h100c",), 500)
    assert kind.flop_per_s == {**base.flop_per_s, "fp8": 1500e12}
    assert kind.memory_bytes == base.memory_bytes
    changed = {name for name in kind.numbers() if kind.fact(name).source == "user"}
    assert changed == {"power_w", "flop_per_s.fp8"}
    assert kind.fact("memory_bytes") == base.fact("memory_bytes")
    assert (base.power_w, base.flop_per_s["fp8"]) == (700, 1978e12)


def test_an_override_may_say_where_it_is_from() -> None:
    kind = DeviceKind.model_validate(
        {"base": "h100", "hbm_bandwidth_bytes_per_s": "3TB/s", "source": "stream test", "confidence": "measured"}
    )
    assert kind.name == "h100_sxm"
    assert kind.fact("hbm_bandwidth_bytes_per_s").source == "stream test"
    assert kind.fact("hbm_bandwidth_bytes_per_s").confidence == "measured"
    assert kind.fact("power_w").source != "stream test"


def test_other_memory_is_not_what_the_driver_of_the_base_reports() -> None:
    kind = DeviceKind.model_validate({"base": "h100", "name": "h100_96", "memory_bytes": "96GB"})
    assert kind.usable_memory_bytes is None
    assert kind.known_memory_bytes == 96e9


@pytest.mark.parametrize("kind", DEVICES, ids=lambda kind: kind.name)
def test_documents_round_trip(kind: DeviceKind) -> None:
    assert DeviceKind.model_validate_json(kind.model_dump_json(), strict=True) == kind


def test_nothing_in_the_catalogue_looks_like_a_mistake() -> None:
    assert [note for kind in DEVICES for note in device_notes(kind)] == []
    assert [note for link in LINKS for note in link_notes(link)] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hbm_bandwidth_bytes_per_s": "3.35GB/s"}, "hbm_bandwidth_bytes_per_s"),
        ({"hbm_bandwidth_bytes_per_s": "3350TB/s"}, "hbm_bandwidth_bytes_per_s"),
        ({"memory_bytes": "640GB"}, "memory_bytes"),
        ({"memory_bytes": "80Gbit"}, "bytes taken for bits"),
        ({"flop_per_s": {"bf16": "989GFLOP/s"}}, "flop_per_s.bf16"),
        ({"scale_up_bandwidth_bytes_per_s": "900GB/s"}, "both directions"),
        ({"scale_up_bandwidth_bytes_per_s": "3600GB/s"}, "Gbit/s written as GB/s"),
        ({"power_w": "700kW"}, "power_w"),
    ],
)
def test_unit_mistakes_are_told(change: dict[str, Any], told: str) -> None:
    (note,) = device_notes(DeviceKind.model_validate({"base": "h100", **change}))
    assert told in note


def test_unit_mistakes_of_links() -> None:
    (note,) = link_notes(Link(name="ib_ndr", kind="ib", bandwidth_bytes_per_s=400e9))
    assert "Gbit/s written as GB/s" in note
    (note,) = link_notes(Link(name="roce_100", kind="roce", bandwidth_bytes_per_s=100e9))
    assert "8 times that of roce_100" in note
    assert link_notes(Link(name="mine", bandwidth_bytes_per_s=50e9)) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"memory_bytes": "-1GB"}, "memory_bytes"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"hbm_bandwidth_bytes_per_s": 0}, "hbm_bandwidth_bytes_per_s"),
        ({"memory_bytes": "80GB/s"}, "unknown unit"),
        ({"flop_per_s": {}}, "flop_per_s"),
        ({"flop_per_s": {"fp64": "1TFLOP/s"}}, "flop_per_s"),
        ({"scale_up_domain_gpus": 8}, "needs scale_up_bandwidth"),
        ({"base": "h10_sxm"}, "did you mean h100_sxm"),
        ({"bandwidth": 1}, "Extra inputs"),
        ({"facts": {"power": {"source": "x"}}}, "no such number"),
    ],
)
def test_bad_sheets_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DeviceKind.model_validate({**SHEET, **change})


def test_problems_are_located(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**SHEET, "memory_bytes": "much"}, indent=1))
    with pytest.raises(DescriptionError, match=r"bad.json:3:2: memory_bytes"):
        read_as(path, DeviceKind)
