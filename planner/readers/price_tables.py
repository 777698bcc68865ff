"""Price tables (CSV, one instance type in one region and market a row) -> offers of a fleet instance.

Columns, by any of the names below: the GPU, how many an instance has and the price are needed; provider, region,
instance type, memory of a GPU, market, currency and date are read where they are there. SkyPilot's catalogues, with
`Price` and `SpotPrice` in one row, give two offers a row.

A price is that of a whole instance; one per GPU is taken when it is the only one, and has to agree otherwise. GPU names
become devices of the catalogue (see gpu_names).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from planner.errors import DescriptionError, Finding, OptionError
from planner.readers.csv_table import TRANSPOSED, Findings, quoted, read_csv_table
from planner.readers.gpu_names import devices_meant, family_of, find_device

Market = Literal["on_demand", "spot", "reserved"]

#: Column names by what they hold, lower case, words joined by _.
COLUMNS: Mapping[str, Sequence[str]] = {
    "provider": ("provider", "cloud", "vendor"),
    "region": ("region", "location"),
    "instance": ("instance_type", "instance", "instancetype", "sku", "vm_size", "machine_type"),
    "gpu": ("gpu", "device", "accelerator", "gpu_name", "gpu_type", "acceleratorname", "accelerator_name"),
    "gpus": ("gpus_per_instance", "gpus", "gpu_count", "num_gpus", "acceleratorcount", "accelerator_count"),
    "memory_gb": ("gpu_mem_gib", "gpu_memory_gib", "gpu_mem_gb", "gpu_memory_gb"),
    "memory_mib": ("gpu_mem_mib", "gpu_memory_mib"),
    "market": ("market", "purchase_option", "pricing"),
    "price": (
        "usd_per_hour", "price_usd_per_hour", "price", "price_per_hour", "hourly", "hourly_price", "hourly_usd",
        "usd_per_instance_hour", "on_demand_price",
    ),
    "price_per_gpu": ("usd_per_gpu_hour", "price_per_gpu_hour", "price_per_gpu", "gpu_hourly"),
    "spot_price": ("spot_price", "spotprice", "spot_usd_per_hour"),
    "currency": ("currency", "currency_code", "currencycode"),
    "as_of": ("as_of", "date", "updated", "effective_date"),
}  # fmt: skip
#: Words for markets. Preemptible and low priority are what GCP, Nebius and older Azure call spot.
MARKETS: Mapping[str, Market] = {
    **dict.fromkeys(("on_demand", "on-demand", "ondemand", "on demand", "payg", "pay-as-you-go"), "on_demand"),
    **dict.fromkeys(("spot", "preemptible", "low_priority", "interruptible"), "spot"),
    **dict.fromkeys(("reserved", "committed", "reservation"), "reserved"),
}  # fmt: skip
#: Currencies in names of columns and in cells; all but the first are refused.
CURRENCIES = ("usd", "eur", "gbp", "jpy", "cny", "inr", "chf", "aud", "cad", "krw", "brl")
#: How far the price per GPU may be from its share of the instance's.
PRICE_TOLERANCE = 0.02
MAX_PRICE_USD_PER_HOUR, MAX_GPUS, MAX_MEMORY_GB = 1e6, 4_096, 4_096.0
#: Characters of a name; an offer's name is made of three.
MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class PriceOffer:
    """One price of one instance type. line : of the table; as_of : empty where the table has no dates."""

    provider: str
    region: str
    instance: str
    device: str
    gpus: int
    market: Market
    price_usd_per_hour: float
    as_of: str
    line: int

    @property
    def name(self) -> str:
        """As `aws/p5.48xlarge@us-east-1`, with `:spot` or `:reserved` behind it."""
        place = (f"{self.provider}/" if self.provider else "") + self.instance
        place += f"@{self.region}" if self.region else ""
        return place if self.market == "on_demand" else f"{place}:{self.market}"

    def entry(self) -> dict[str, Any]:
        """As the `offers` of a fleet instance have it."""
        entry: dict[str, Any] = {"name": self.name, "device": self.device, "gpus": self.gpus}
        entry["price_usd_per_hour"] = self.price_usd_per_hour
        return entry | ({"region": self.region} if self.region else {}) | {"market": self.market}


@dataclass(frozen=True, slots=True)
class PriceFilter:
    """What is asked for; empty is everything. gpus : families (h100) or devices (h100_nvl)."""

    provider: str = ""
    regions: tuple[str, ...] = ()
    market: Market | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceTable:
    """offers : in the order of the table. skipped : bad rows that were left out; notes : what was assumed or merged."""

    offers: tuple[PriceOffer, ...]
    skipped: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()


def read_price_table(path: str | Path, only: PriceFilter | None = None, *, skip_bad: bool = False) -> PriceTable:
    """Read a table ('-' is standard input). Rows that are not asked for are not looked at.

    skip_bad : leave bad rows out, and list them, instead of refusing the table.

    Raises DescriptionError with all problems: unknown header, other currencies, GPUs that the catalogue does not know,
    fractions of GPUs, prices that are missing, zero or negative, two prices of one thing; and when no row is left.
    """
    table = read_csv_table(path, ())
    names = tuple(re.sub(r"[\s\-]+", "_", name) for name in table.names)
    reader = _Reader(table.path, _header(table.path, names), only or PriceFilter())
    found: list[PriceOffer] = []
    for line, fields in zip(table.lines, table.fields, strict=True):
        found.extend(reader.row(line, fields))
    offers = reader.newest(found)
    if not skip_bad:
        reader.findings.refuse()
    if not offers:
        raise DescriptionError([Finding(table.path, reader.nothing()), *reader.findings.found[:20]])
    return PriceTable(tuple(offers), tuple(reader.findings.found), tuple(reader.notes.found))


def _header(path: str, names: Sequence[str]) -> Mapping[str, int]:
    """Index of each column by what it holds."""
    found: dict[str, int] = {}
    findings = []
    for what, known in COLUMNS.items():
        places = [index for index, name in enumerate(names) if name in known]
        if len(places) > 1:
            findings.append(f"has several columns for {what}: {', '.join(names[place] for place in places)}; keep one")
        if places:
            found[what] = places[0]
    for name in names:
        foreign = [word for word in name.split("_") if word in CURRENCIES[1:]]
        if foreign:
            findings.append(f"column {quoted(name)} is in {foreign[0].upper()}; prices must be in USD")
    for needed in ("gpu", "gpus"):
        if needed not in found:
            findings.append(f"has no column for {needed} (such as {', '.join(COLUMNS[needed][:3])})")
    if not {"price", "price_per_gpu", "spot_price"} & set(found):
        findings.append(f"has no column for a price (such as {', '.join(COLUMNS['price'][:3])})")
    if "market" in found and "spot_price" in found:
        findings.append("has a column for the market and one for spot prices; keep one")
    if findings:
        if set(found.values()) == {0} and len(names) > 1:
            findings.append(TRANSPOSED)
        raise DescriptionError([Finding(path, told, 1) for told in findings])
    return found


class _Reader:
    """Rows to offers; bad rows to findings."""

    def __init__(self, path: str, columns: Mapping[str, int], only: PriceFilter) -> None:
        self.columns = columns
        self.only = only
        self.findings, self.notes = Findings(path), Findings(path)
        self._devices = frozenset[str]().union(*map(devices_meant, only.gpus))
        self._families = {family_of(device) for device in self._devices}
        self._there: dict[str, set[str]] = {"provider": set(), "region": set(), "gpu": set()}

    def row(self, line: int, fields: Sequence[str]) -> Iterator[PriceOffer]:
        """The offers of one row: none when it is bad or not asked for."""
        cells = {what: fields[index].strip() for what, index in self.columns.items()}
        if not self._asked(cells):
            return
        market = self._market(line, cells)
        if self.only.market is not None and market not in (None, self.only.market):
            return
        before = len(self.findings)
        self._check_words(line, cells)
        gpus = self._gpus(line, cells["gpus"])
        memory_gb = self._memory_gb(line, cells)
        as_of = self._as_of(line, cells.get("as_of", ""))
        if gpus is None or len(self.findings) > before:
            return
        instance = cells.get("instance") or f"{gpus}x{cells['gpu']}"
        try:
            device = find_device(cells["gpu"], memory_gb, instance).name
        except OptionError as error:
            self.findings.tell(line, str(error))
            return
        if self._devices and device not in self._devices:
            return
        place = cells.get("provider", ""), cells.get("region", ""), instance
        for name, price in self._prices(line, cells, market, gpus).items():
            if self.only.market in (None, name):
                yield PriceOffer(*place, device, gpus, name, price, as_of, line)

    def newest(self, offers: Sequence[PriceOffer]) -> list[PriceOffer]:
        """One price for each provider, region, instance and market: the newest, told; two at once are a finding."""
        kept: dict[str, PriceOffer] = {}
        for offer in offers:
            other = kept.get(offer.name)
            if other is None:
                kept[offer.name] = offer
                continue
            old, new = sorted((other, offer), key=lambda one: (one.as_of, one.line))
            same = (old.device, old.gpus, old.price_usd_per_hour) == (new.device, new.gpus, new.price_usd_per_hour)
            if old.as_of == new.as_of and not same:
                prices = f"{old.price_usd_per_hour:g} (line {old.line}) and {new.price_usd_per_hour:g} USD/h"
                self.findings.tell(new.line, f"{offer.name} has two prices, {prices}, and no date says which is newer")
                continue
            kept[offer.name] = new
            if not same:
                told = f"{offer.name}: {new.price_usd_per_hour:g} USD/h of {new.as_of} taken over"
                self.notes.tell(new.line, f"{told} {old.price_usd_per_hour:g} of {old.as_of or 'no date'}")
        return list(kept.values())

    def nothing(self) -> str:
        """Why no row is left."""
        asked = {"provider": filter(None, [self.only.provider]), "region": self.only.regions, "gpu": self.only.gpus}
        parts = [f"market {self.only.market}"] if self.only.market else []
        for what, wanted in asked.items():
            if words := " or ".join(wanted):
                there = ", ".join(sorted(self._there[what])[:20])
                parts.append(f"{what} {words} (the table has {there or 'none'})")
        return f"has no usable row of {'; '.join(parts)}" if parts else "has no usable row"

    def _asked(self, cells: Mapping[str, str]) -> bool:
        for what, there in self._there.items():
            if len(there) < 100 and cells.get(what):
                there.add(quoted(cells[what])[1:-1])
        provider, region = cells.get("provider", "").lower(), cells.get("region", "").lower()
        if self.only.provider and provider != self.only.provider.lower():
            return False
        if self.only.regions and region not in {one.lower() for one in self.only.regions}:
            return False
        # By family: a bad row of another GPU is no problem here. Which device of the family it is comes out later.
        return not self._devices or family_of(cells["gpu"]) in self._families

    def _market(self, line: int, cells: Mapping[str, str]) -> Market | None:
        """None when a row has prices of two markets, or with a finding."""
        if "spot_price" in cells:
            return None
        if "market" not in cells:
            self.notes.tell(1, "has no column for the market: all prices are taken as on_demand", once=True)
            return "on_demand"
        return self.findings.choice(line, "market", cells["market"], MARKETS)

    def _check_words(self, line: int, cells: Mapping[str, str]) -> None:
        for what in ("provider", "region", "instance", "gpu"):
            text = cells.get(what, "")
            if len(text) > MAX_NAME or not text.isprintable():
                self.findings.tell(line, f"{what} is {quoted(text)}: not a name of up to {MAX_NAME} characters")
        if not cells["gpu"]:
            self.findings.tell(line, "names no GPU")
        if cells.get("currency", "").lower() not in ("", "usd", "$", "us$"):
            self.findings.tell(line, f"the currency is {quoted(cells['currency'])}; prices must be in USD")

    def _gpus(self, line: int, text: str) -> int | None:
        value = _number(text)
        if value > 0 and value % 1:
            self.findings.tell(line, f"rents {value:g} GPUs: a plan counts whole ones")
        elif not 1 <= value <= MAX_GPUS:
            self.findings.tell(line, f"gpus is {quoted(text)}, not a whole number from 1 to {MAX_GPUS}")
        else:
            return int(value)
        return None

    def _memory_gb(self, line: int, cells: Mapping[str, str]) -> float | None:
        """Memory of one GPU in GB or GiB, which tables do not tell apart; None where none is given."""
        for what, unit in (("memory_gb", 1.0), ("memory_mib", 1 / 1024)):
            if cells.get(what):
                found = _number(cells[what]) * unit
                if 0 < found <= MAX_MEMORY_GB:
                    return found
                self.findings.tell(line, f"{what} is {quoted(cells[what])}, not the memory of a GPU")
        return None

    def _as_of(self, line: int, text: str) -> str:
        if text:
            try:
                return date.fromisoformat(text[:10]).isoformat()
            except ValueError:
                self.findings.tell(line, f"as_of is {quoted(text)}, not a date as 2026-07-20")
        return ""

    def _prices(self, line: int, cells: Mapping[str, str], market: Market | None, gpus: int) -> Mapping[Market, float]:
        """Of a whole instance by market; fewer than there should be, with findings."""
        given: dict[Market, str] = {"on_demand": cells.get("price", ""), "spot": cells.get("spot_price", "")}
        if "spot_price" in cells and any(given.values()):
            found = {name: self._usd(line, f"{name} price", text) for name, text in given.items() if text}
        elif market is None:
            if "spot_price" in cells:
                self.findings.tell(line, "has no price")
            return {}
        else:
            found = {market: self._price(line, cells, gpus)}
        return {name: price for name, price in found.items() if price is not None}

    def _price(self, line: int, cells: Mapping[str, str], gpus: int) -> float | None:
        each = self._usd(line, "price per GPU", cells["price_per_gpu"]) if cells.get("price_per_gpu") else None
        if "price" not in cells:
            if not cells["price_per_gpu"]:
                self.findings.tell(line, "has no price")
            return None if each is None else each * gpus
        whole = self._usd(line, "price", cells["price"])
        if whole is not None and each is not None and abs(each * gpus - whole) > PRICE_TOLERANCE * whole:
            told = f"{whole:g} USD/h for {gpus} GPUs and {each:g} for each of them do not agree"
            self.findings.tell(line, f"{told}: columns are mixed up?")
            return None
        return whole

    def _usd(self, line: int, what: str, text: str) -> float | None:
        value = _number(text.removeprefix("$"))
        if 0 < value <= MAX_PRICE_USD_PER_HOUR:
            return value
        hint = f"not a number above 0 and up to {MAX_PRICE_USD_PER_HOUR:g}"
        if any(sign in text for sign in "€£¥₹"):
            hint = "prices must be in USD"
        self.findings.tell(line, f"{what} is {quoted(text)}, {hint}" if text else f"has no {what}")
        return None


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
