"""Where a workbook holds each key of a fleet instance: what the writer fills in and the reader takes out.

`Inputs` has one key a row (label in A, value in B); each list of the instance is a sheet with one entry a row. Titles
stand in row 4, units in row 5, values from row 6 on: the reader goes by titles, so that columns may be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Rows, from 0, of a sheet's titles, units and first values.
TITLE_ROW, UNIT_ROW, FIRST_ROW = 3, 4, 5
#: Columns, from 0, of the sheet `Inputs`: what, value, unit, note.
LABEL_COL, VALUE_COL = 0, 1
INPUTS = "Inputs"
#: Label of the row that tells the problem, and of the one that tells where relative paths begin.
PROBLEM, FOLDER = "problem", "folder of files"
#: Title of an hour's column in the sheet `Demand`, before its number.
HOUR = "hour "
#: Between the names of a list in one cell.
BETWEEN = ";"

#: One text, number or whole number; several of them in one cell; yes for an object that is there, or for true.
Kind = Literal["text", "number", "whole", "names", "numbers", "wholes", "yes", "true"]


@dataclass(frozen=True, slots=True)
class Field:
    """One key of the instance, or of an entry of a list, and its cell. keys : () where it is the workbook's own."""

    title: str
    keys: tuple[str, ...]
    kind: Kind
    unit: str = ""
    note: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A list of the instance as a sheet."""

    sheet: str
    key: str
    title: str
    note: str
    fields: Sequence[Field]


ROLES = ("both", "prefill", "decode", "attention", "experts")
GROWTH = Field("growth of all demand", (), "number", "times", "1.3 plans for 30 % more of everything")
OWN_LIMITS = Field("limits apply", ("slo",), "yes", "yes or empty", "an empty set of limits is no limit at all")
IN_FORCE = Field("a fleet is in force", ("current",), "yes", "yes or empty", "counts stand in the Catalogue")

SCALARS: tuple[Field, ...] = (
    Field("name", ("name",), "text", "", "of this plan"),
    Field("time to first token", ("slo", "ttft_s"), "number", "s", "empty: no limit"),
    Field("time per output token", ("slo", "tpot_s"), "number", "s", "empty: no limit"),
    Field("percentile", ("slo", "percentile"), "number", "%", "of requests that keep the limits; empty: their mean"),
    OWN_LIMITS,
    Field("headroom", ("headroom",), "number", "share", "capacity kept free: 0.25 is a quarter of the demand"),
    GROWTH,
    Field("window of slack", ("pool_slack", "window_s"), "number", "s", "small pools keep more free; empty: none do"),
    Field("quantile of slack", ("pool_slack", "quantile"), "number", "share", "of the windows to hold; empty: 0.95"),
    Field("spare instances", ("spare_instances",), "whole", "0 or 1", "1: the loss of any one instance is survived"),
    Field("spare zones", ("spare_zones",), "whole", "0 or 1", "1: the loss of any one zone is survived"),
    Field("budget", ("budget_usd_per_hour",), "number", "USD/hour", "in any hour; empty: no limit"),
    Field("power", ("max_watts",), "number", "W", "in any hour; empty: no limit"),
    Field("expected draw", ("power", "draw"), "number", "share", "of an instance's watts, or phases; empty: all"),
    Field("power margin", ("power", "margin"), "number", "share", "of the power that the expected draw leaves free"),
    Field("most on spot", ("max_spot_share",), "number", "share", "of each model's requests; empty: no limit"),
    Field(
        "what cannot be served", ("unserved",), "text", "", "refuse: then there is no plan", ("refuse", "by_priority")
    ),
    Field(
        "sizes without a profile", ("unprofiled",), "text", "", "refuse, or count as the next larger profiled size",
        ("refuse", "round_up"),
    ),
    Field("calibration", ("calibration",), "text", "file", "efficiency.yaml of your own measurements; empty: none"),
    Field("most starts", ("max_starts",), "whole", "instances", "from one hour to the next"),
    Field("most stops", ("max_stops",), "whole", "instances", "from one hour to the next"),
    Field("hours repeat", ("cyclic",), "true", "yes or empty", "the first hour follows the last"),
    IN_FORCE,
    Field("most changes", ("max_changes",), "whole", "instances", "added to or dropped from the fleet in force"),
    Field("price of a change", ("change_cost_usd_per_hour",), "number", "USD/hour", "of one instance added or dropped"),
)  # fmt: skip

CURRENT = Field("in force", ("current",), "whole", "instances", "of the fleet in force; empty: not told")
MODELS = Table(
    "Models", "models", "What is served", "One row a model.",
    (
        Field("name", ("name",), "text"),
        Field("model", ("model",), "text", "", "catalogue name or config.json; needed without profiles"),
        Field("backend", ("backend",), "text", "", "engine", ("vllm", "sglang", "trtllm")),
        Field("precision", ("precision",), "text", "", "of the weights; empty: the checkpoint's"),
        Field("GPUs a replica", ("gpus_per_replica",), "wholes", "1; 2; 4", "sizes to choose from; empty: all"),
        Field("roles", ("roles",), "names", "", "both, or prefill; decode; or all three"),
        Field("least replicas", ("min_replicas",), "whole"),
        Field("own limits", ("slo",), "yes", "yes or empty", "instead of those of Inputs"),
        Field("time to first token", ("slo", "ttft_s"), "number", "s"),
        Field("time per output token", ("slo", "tpot_s"), "number", "s"),
        Field("percentile", ("slo", "percentile"), "number", "%"),
        Field("regions", ("regions",), "names", "a; b", "where it may run; empty: anywhere"),
        Field("cache", ("kv_bytes_per_token",), "number", "bytes/token", "from prefill to decode; empty: the model's"),
        Field("activations", ("activation_bytes_per_token",), "number", "bytes/token", "from attention to experts"),
        Field("priority", ("priority",), "whole", "", "higher goes first where not all can be served"),
    ),
)  # fmt: skip
OFFERS = Table(
    "Catalogue", "offers", "What can be rented", "One row an offer; GPUs of the catalogue stand on the right.",
    (
        Field("name", ("name",), "text"),
        Field("GPU", ("device",), "text"),
        Field("GPUs", ("gpus",), "whole", "an instance"),
        Field("price", ("price_usd_per_hour",), "number", "USD/hour"),
        Field("most", ("max_count",), "whole", "instances", "empty: not known, which is not zero"),
        Field("least", ("min_count",), "whole", "instances"),
        Field("region", ("region",), "text"),
        Field("zone", ("zone",), "text", "", "what fails together; empty: the region"),
        Field("market", ("market",), "text", "", "how it is paid", ("on_demand", "spot", "reserved")),
        Field("availability", ("availability",), "number", "share", "of the time that a spot instance is there"),
        Field("start", ("start_cost_usd",), "number", "USD", "of each instance that is started"),
        Field("network", ("network_bytes_per_s",), "number", "bytes/s", "of an instance, each way; empty: not limited"),
        Field("watts", ("watts",), "number", "W", "of an instance; empty: its GPUs' board power"),
        CURRENT,
    ),
)  # fmt: skip
DEMAND_GROWTH = Field("growth", (), "number", "times", "of this row alone")
DEMAND = Table(
    "Demand", "demand", "What is asked", "One row a model and a size: a rate, or one for each hour on the right.",
    (
        Field("model", ("model",), "text"),
        Field("input", ("input_tokens",), "whole", "tokens"),
        Field("output", ("output_tokens",), "whole", "tokens"),
        Field("priority", ("priority",), "whole", "", "empty: the model's"),
        Field("rate", ("rate_per_s",), "number", "requests/s", "empty where hours are given"),
        DEMAND_GROWTH,
        Field("burst", ("burst",), "numbers", "times", "rate to be ready for, or of each hour; not headroom"),
    ),
)  # fmt: skip
PROFILES = Table(
    "Profiles", "profiles", "What was measured",
    "Highest rate of a size that one replica serves within the limits; 0: none. Empty: the cost model computes it.",
    (
        Field("offer", ("offer",), "text"),
        Field("model", ("model",), "text"),
        Field("input", ("input_tokens",), "whole", "tokens"),
        Field("output", ("output_tokens",), "whole", "tokens"),
        Field("highest rate", ("max_rate_per_s",), "number", "requests/s"),
        Field("GPUs", ("gpus",), "whole", "a replica", "empty: all of the offer's"),
        Field("role", ("role",), "text", "", "both: all of a request", ROLES),
    ),
)  # fmt: skip
QUOTAS = Table(
    "Quotas", "quotas", "Limits over several offers", "One row a quota.",
    (
        Field("name", ("name",), "text"),
        Field("offers", ("offers",), "names", "a; b"),
        Field("most GPUs", ("max_gpus",), "whole", "GPUs"),
    ),
)  # fmt: skip
LINKS = Table(
    "Links", "links", "Between regions", "One row a direction; regions without a link hand nothing to one another.",
    (
        Field("from", ("from_region",), "text"),
        Field("to", ("to_region",), "text"),
        Field("bandwidth", ("bytes_per_s",), "number", "bytes/s"),
    ),
)  # fmt: skip
#: Lists of the instance in the order of their sheets.
TABLES: tuple[Table, ...] = (MODELS, OFFERS, DEMAND, PROFILES, QUOTAS, LINKS)
