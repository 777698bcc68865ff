"""From an instance to a workbook and back: nothing is lost, and what is mistaken is located at its cell."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workbook_cases import DATE, ROOT, cell_of, edited

from formulations.kinds import read_instance
from formulations.planning import problem_of
from planner.descriptions.fleet import Demand, FleetInstance, Link, Offer, Profile, Quota, ServedModel
from planner.errors import DescriptionError, ExportError
from planner.files import read_source, validate
from planner.overlay import Flag, over
from planner.readers import workbook as reader
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet import fleet_book
from planner.reporting.workbook.layout import SCALARS, TABLES
from planner.reporting.workbook.plans import plan_book
from planner.reporting.workbook.values import flattened, scalar, unflattened
from planner.reporting.workbook.xlsx import csv_text, to_bytes, write_xlsx

SIZE = {"input_tokens": 100, "output_tokens": 50}
#: Texts that spreadsheet programs, lists in cells or CSV could take for something else.
NASTY = [
    "=1+1",
    "@SUM(A1)",
    "+1",
    "-1",
    "a; b",
    '["x"]',
    " b ",
    "null",
    "{}",
    "12",
    "1e5",
    "yes",
    "_x0041_",
    "a*?~",
    "é 漢 😀",
]

names = st.one_of(
    st.sampled_from(NASTY),
    st.text(
        st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1, max_size=20
    ).filter(lambda text: bool(text.strip())),
)
rates = st.floats(0, 1e8, allow_subnormal=False)
counts = st.integers(0, 1_000_000)
slos = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "ttft_s": st.floats(1e-6, 1e3),
            "tpot_s": st.floats(1e-6, 1e3),
            "percentile": st.floats(1, 99.9),
        },
    ),
)


@st.composite
def fleets(draw: st.DrawFn) -> FleetInstance:
    """Valid instances with every key that there is."""
    offers = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    models = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    hours = draw(st.integers(0, 4))
    demand = []
    for place, model in enumerate(models):
        size = {"input_tokens": draw(st.integers(1, 1 << 24)), "output_tokens": 1 + place}
        rate: dict[str, Any] = {"rate_per_s": draw(rates)}
        if hours and draw(st.booleans()):
            rate = {"hourly": tuple(draw(st.lists(rates, min_size=hours, max_size=hours)))}
            rate["burst"] = draw(st.none() | st.just(1.5) | st.just(tuple(1 + hour / 3 for hour in range(hours))))
        demand.append({"model": model, **size, **rate, "priority": draw(st.none() | st.integers(-1000, 1000))})
    demand.append({"model": models[0], "input_tokens": 7, "output_tokens": 77, "rate_per_s": 1.5})
    markets = st.sampled_from(["on_demand", "spot", "reserved"])
    regions = [draw(st.none() | names) for _ in offers]
    rows = [
        {
            "name": name,
            "device": draw(st.sampled_from(["l4", "H100-SXM", "home made", "=x"])),
            "gpus": draw(st.sampled_from([1, 2, 8])),
            "price_usd_per_hour": draw(st.floats(0, 1e6)),
            "max_count": draw(st.none() | counts),
            "region": region,
            "market": draw(markets),
            "availability": draw(st.floats(0.01, 1)),
            "watts": draw(st.none() | st.floats(0, 1e6)),
            "zone": draw(st.none() | names),
            "network_bytes_per_s": draw(st.none() | st.floats(1, 1e12)),
        }
        for name, region in zip(offers, regions, strict=True)
    ]
    served = [
        {
            "name": name,
            "model": draw(st.none() | names),
            "backend": draw(st.sampled_from(["vllm", "sglang", "trtllm"])),
            "precision": draw(st.none() | names),
            "gpus_per_replica": draw(st.none() | st.just((1, 2, 4))),
            "min_replicas": draw(counts),
            "slo": draw(slos),
            "regions": (known,) if (known := draw(st.sampled_from(regions))) is not None else None,
            "kv_bytes_per_token": draw(st.none() | st.floats(1, 1e9)),
            "priority": draw(st.integers(-1000, 1000)),
        }
        for name in models
    ]
    measured = [
        {"offer": offers[0], "model": models[0], **SIZE, "max_rate_per_s": draw(st.floats(1e-6, 1e8)), "gpus": 1}
    ]
    current = draw(st.none() | st.dictionaries(st.sampled_from(offers), counts))
    quotas = st.builds(dict, name=names, offers=st.just(tuple(offers)), max_gpus=counts)
    limits: dict[str, Any] = {}
    if current is not None:
        limits = {"max_changes": draw(st.none() | counts), "change_cost_usd_per_hour": draw(st.floats(0, 100))}
    return FleetInstance(
        name=draw(names), offers=rows, models=served, demand=demand, profiles=measured, current=current,
        slo=draw(slos), headroom=draw(st.floats(0, 1000)), spare_instances=draw(st.sampled_from([0, 1])),
        spare_zones=draw(st.sampled_from([0, 1])) if all(regions) and len(set(regions)) > 1 else 0,
        cyclic=draw(st.booleans()), pool_slack=draw(st.none() | st.just({"window_s": 2.5, "quantile": 0.9})),
        unprofiled=draw(st.sampled_from(["refuse", "round_up"])),
        unserved=draw(st.sampled_from(["refuse", "by_priority"])),
        calibration=draw(st.none() | names), budget_usd_per_hour=draw(st.none() | st.floats(0, 1e9)),
        max_watts=draw(st.none() | st.floats(0, 1e9)), max_spot_share=draw(st.none() | st.floats(0, 1)),
        quotas=tuple(draw(st.lists(quotas, max_size=2))),
        **limits,
    )  # fmt: skip


def test_every_key_has_a_cell() -> None:
    """A key that the description gains must get a place in the workbook."""
    lists = {table.key: {one.keys[0] for one in table.fields if one.keys} - {"current"} for table in TABLES}
    scalars = {one.keys[0] for one in SCALARS if one.keys}
    assert scalars | set(lists) | {"problem"} == set(FleetInstance.model_fields)
    for key, model in (
        ("models", ServedModel),
        ("offers", Offer),
        ("profiles", Profile),
        ("quotas", Quota),
        ("links", Link),
    ):
        assert lists[key] == set(model.model_fields)
    assert lists["demand"] | {"hourly"} == set(Demand.model_fields)


def written(instance: FleetInstance, folder: Path) -> Path:
    """The sheets to fill in. Without results: nothing reads them here."""
    path = folder / "plan.xlsx"
    path.write_bytes(to_bytes(fleet_book(instance, None, FleetFacts(), DATE), {}))
    return path


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(instance=fleets())
def test_a_fleet_comes_back_as_it_was(tmp_path: Path, instance: FleetInstance) -> None:
    assert validate(read_source(written(instance, tmp_path)), FleetInstance) == instance


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_instance_comes_back(path: Path, tmp_path: Path) -> None:
    """Of every problem, and from another folder: files that it names are found."""
    source = read_source(path)
    _, instance = read_instance(source)
    target = tmp_path / "plan.xlsx"
    folder = str(path.parent)
    if isinstance(instance, FleetInstance):
        book = fleet_book(instance, None, FleetFacts(folder=folder), DATE)
    else:
        book = plan_book(instance, source.value, None, folder, DATE)
    target.write_bytes(to_bytes(book, {}))
    back = read_source(target)
    assert read_instance(back)[1] == instance
    assert back.base_dir == path.parent
    if path.stem in ("two_offers", "four_experts", "given_table", "two_nodes"):
        assert problem_of(back).sha256 == problem_of(source).sha256


keys = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.sampled_from(NASTY) | keys,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, json_values, min_size=1, max_size=4))
def test_paths_and_values_come_back(value: dict[str, Any]) -> None:
    assert unflattened([(path, scalar(one)) for path, one in flattened(value)]) == value


@pytest.mark.parametrize("rows", [[("a", 1), ("a/b", 2)], [("a", 1), ("a", 2)], [("a/0", 1), ("a/2", 2)]])
def test_paths_that_contradict_are_refused(rows: list[tuple[str, Any]]) -> None:
    with pytest.raises(ValueError, match="a"):
        unflattened(rows)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return written(validate(read_source(ROOT / "fleet" / "two_offers.yaml"), FleetInstance), tmp_path)


def findings(path: Path) -> str:
    with pytest.raises(DescriptionError) as raised:
        problem_of(read_source(path))
    return str(raised.value)


def test_mistakes_are_told_together_at_their_cells(two: Path) -> None:
    """Of the sheet that is wrong, with what stands there."""
    headroom = cell_of(two, "Inputs", "headroom")
    told = findings(
        edited(two, {headroom: -1, "Catalogue!D7": "dear", "Demand!A6": "nobody", "Models!C6": "tgi", "Demand!B7": 1.5})
    )
    name = f"{two.parent}/edited_plan.xlsx"
    assert f"{name}:{headroom}: Input should be greater than or equal to 0 (got '-1')" in told
    assert f"{name}:Catalogue!D7: cannot read 'dear' as a price" in told
    assert f"{name}:Models!C6: " in told
    assert f"{name}:Demand!B7: " in told
    told = findings(edited(two, {"Demand!A6": "nobody"}))
    assert told.startswith(f"{name}:Demand!A6: no model is named 'nobody'")


def test_what_cannot_be_read_is_told_at_its_cell(two: Path) -> None:
    import datetime

    told = findings(
        edited(
            two,
            {
                "Catalogue!D6": datetime.date(2026, 1, 1),
                "Models!E6": "one; two",
                "Models!H6": "perhaps",
                "Demand!F6": "lots",
                "Inputs!A9": "headroom",
                "Profiles!E7": "=1/0",
                "Inputs!A30": "budgett",
                "Catalogue!A4": "title",
            },
        )
    )
    for cell, text in (
        ("Catalogue!D6", "a date or time"),
        ("Models!E6", "must be whole numbers with a ';' between"),
        ("Models!H6", "must be yes or empty"),
        ("Demand!F6", "must be a number from 0"),
        ("Inputs!A13", "stands here twice"),
        ("Profiles!E7", "a formula without a stored result"),
        ("Inputs!A30", "no key of a fleet"),
        ("Catalogue!A4", "the column 'name' is missing"),
    ):
        assert f":{cell}: " in told, told
        assert text in told


def test_flags_go_over_a_workbook_and_the_rest_stays_located(two: Path) -> None:
    source = over(read_source(edited(two, {"Catalogue!D7": "dear"})), {("headroom",): Flag("--headroom", -1)})
    with pytest.raises(DescriptionError) as raised:
        validate(source, FleetInstance)
    assert "--headroom: Input should be" in str(raised.value)
    assert ":Catalogue!D7: " in str(raised.value)


def test_growth_multiplies_the_rates_and_begins_anew(two: Path) -> None:
    """10 and 2 a second, twice, and the second row half again: 20 and 6."""
    path = edited(two, {cell_of(two, "Inputs", "growth of all demand"): 2, "Demand!F7": 1.5})
    instance = validate(read_source(path), FleetInstance)
    assert [one.rate_per_s for one in instance.demand] == [20, 6]
    again = validate(read_source(written(instance, two.parent)), FleetInstance)
    assert again == instance


def test_rows_may_be_added_and_columns_moved(two: Path) -> None:
    path = edited(
        two,
        {
            "Catalogue!A9": "third", "Catalogue!B9": "l40s", "Catalogue!D9": "$2/h", "Catalogue!C9": 1,
            "Quotas!A4": "most GPUs", "Quotas!C4": "name", "Quotas!A7": 8, "Quotas!B7": "small; third",
            "Quotas!C7": "q",
        },
    )  # fmt: skip
    instance = validate(read_source(path), FleetInstance)
    assert [one.name for one in instance.offers] == ["small", "large", "third"]
    assert instance.offers[2].price_usd_per_hour == 2
    assert instance.quotas[0].offers == ("small", "third")


def test_an_hour_that_is_empty_is_not_zero(tmp_path: Path) -> None:
    instance = validate(read_source(ROOT / "fleet" / "week.yaml"), FleetInstance)
    told = findings(edited(written(instance, tmp_path), {"Demand!M7": None}))
    assert ":Demand!M7: is empty, but other hours of this row have rates" in told


def test_text_that_looks_like_a_formula_stays_text(tmp_path: Path) -> None:
    text = '=HYPERLINK("http://x","y")'
    instance = validate(read_source(ROOT / "fleet" / "two_offers.yaml"), FleetInstance)
    models = (instance.models[0].model_copy(update={"name": text}),)
    demand = tuple(one.model_copy(update={"model": text}) for one in instance.demand)
    profiles = tuple(one.model_copy(update={"model": text}) for one in instance.profiles)
    bad = instance.model_copy(update={"name": "@x", "models": models, "demand": demand, "profiles": profiles})
    book = fleet_book(bad, None, FleetFacts(), DATE)
    path = tmp_path / "plan.xlsx"
    results = write_xlsx(book, str(path))
    parts = zipfile.ZipFile(path)
    assert not [name for name in parts.namelist() if b"HYPERLINK" in parts.read(name) and "sharedStrings" not in name]
    assert b'quotePrefix="1"' in parts.read("xl/styles.xml")
    sheet = csv_text(book.sheet("Models"), results)
    assert "\"'=HYPERLINK" in sheet
    assert validate(read_source(path), FleetInstance).models[0].name == text


def test_control_characters_are_refused(tmp_path: Path) -> None:
    instance = validate(read_source(ROOT / "fleet" / "two_offers.yaml"), FleetInstance)
    with pytest.raises(ExportError, match=r"Read me!A1: .* control characters"):
        write_xlsx(fleet_book(instance.model_copy(update={"name": "a\x1bb"}), None, FleetFacts(), DATE), "x.xlsx")


def zipped(parts: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return data.getvalue()


def hostile(two: Path, **changed: bytes) -> bytes:
    parts = zipfile.ZipFile(two)
    return zipped({name: changed.get(name.split("/")[-1].split(".")[0], parts.read(name)) for name in parts.namelist()})


def test_hostile_files_are_refused_in_a_line(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_UNPACKED_BYTES", 2**20)
    entities = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    whole = two.read_bytes()
    for data, message in (
        (b"", "is no .xlsx file"),
        (b"not a zip", "is no .xlsx file"),
        (whole[: len(whole) // 2], "is no .xlsx file"),
        (zipped({"a": b"x"}), "is no .xlsx file"),
        (zipped({"xl/workbook.xml": b"0" * 2**21}), "unpacks to more than"),
        (hostile(two, sharedStrings=entities), "declares XML entities"),
        (hostile(two, sharedStrings=entities.decode().encode("utf-16")), "declares XML entities"),
        (hostile(two, sheet2=b"<worksheet><sheetData><row r='x'>"), "is no .xlsx file"),
        (hostile(two, workbook=b"<workbook/>"), ".xlsx"),
    ):
        path = two.with_name("bad.xlsx")
        path.write_bytes(data)
        assert message in findings(path), message


def test_a_sheet_that_claims_to_be_huge_is_read_in_no_time(two: Path) -> None:
    """The stated size is not believed, and a cell far away is beyond what is read."""
    import re as regex

    parts = zipfile.ZipFile(two)
    sheet = parts.read("xl/worksheets/sheet2.xml")
    claimed = regex.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:XFD1048576"', sheet)
    two.with_name("claims.xlsx").write_bytes(hostile(two, sheet2=claimed))
    assert validate(read_source(two.with_name("claims.xlsx")), FleetInstance).name == "two-offers"
    far = claimed.replace(b"</sheetData>", b'<row r="1048576"><c r="A1048576"><v>1</v></c></row></sheetData>')
    two.with_name("far.xlsx").write_bytes(hostile(two, sheet2=far))
    assert "more than 100000 rows" in findings(two.with_name("far.xlsx"))


def test_a_book_of_something_else_is_told(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.save(tmp_path / "other.xlsx")
    assert "has no sheet 'Inputs': is it a workbook of gpuplan?" in findings(tmp_path / "other.xlsx")
    sheet = book.create_sheet("Inputs")
    sheet["A6"], sheet["B6"] = "problem", "lunch"
    book.save(tmp_path / "lunch.xlsx")
    assert "lunch.xlsx:Inputs!B6: problem must be one of" in findings(tmp_path / "lunch.xlsx").replace(
        "problem: ", "", 1
    )


def test_a_macro_is_never_looked_at(two: Path) -> None:
    path = two.with_name("macro.xlsm")
    path.write_bytes(two.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/vbaProject.bin", b"\x00" * 100)
    assert validate(read_source(path), FleetInstance).name == "two-offers"


def test_a_stored_result_of_a_formula_counts(two: Path) -> None:
    """As a program saves it: the formula and its result."""
    parts = zipfile.ZipFile(two)
    sheet = parts.read("xl/worksheets/sheet5.xml")
    before = b"<v>10.0</v>"
    assert sheet.count(before) == 1
    path = two.with_name("formula.xlsx")
    path.write_bytes(hostile(two, sheet5=sheet.replace(before, b"<f>5+7</f><v>12</v>")))
    assert validate(read_source(path), FleetInstance).demand[0].rate_per_s == 12


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    """17 digits, which XlsxWriter alone would round to 16."""
    value = 0.1 + 0.2
    instance = validate(read_source(ROOT / "fleet" / "two_offers.yaml"), FleetInstance)
    back = validate(read_source(written(instance.model_copy(update={"headroom": value}), tmp_path)), FleetInstance)
    assert back.headroom == value
    assert json.dumps(back.headroom) == "0.30000000000000004"
