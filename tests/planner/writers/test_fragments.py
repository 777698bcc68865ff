"""Parts of instances as text mean what they were made of, as YAML and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.files import read_source
from planner.writers.fragments import to_json_lines, to_yaml

words = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
keys = st.sampled_from(["name", "rate_per_s", "hourly", "market"])
entries = st.dictionaries(keys, scalars | words | st.lists(scalars, max_size=4), max_size=4)
documents = st.dictionaries(
    st.sampled_from(["demand", "offers", "headroom", "slo"]),
    scalars | words | entries | st.lists(entries, max_size=3),
    min_size=1,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(documents, st.lists(st.text(max_size=20), max_size=2))
def test_round_trip(tmp_path: Path, document: dict[str, Any], comments: list[str]) -> None:
    path = tmp_path / "part.yaml"
    path.write_text(to_yaml(document, [comment.encode("utf-8", "replace").decode() for comment in comments]), "utf-8")
    assert read_source(path).value == document
    assert json.loads(to_json_lines(document)) == document


def test_by_hand() -> None:
    document = {"demand": [{"model": "m", "hourly": [1e-05, 2.5]}], "headroom": 0.1, "offers": []}
    assert to_yaml(document, ["two\nlines"]) == (
        '# two?lines\ndemand:\n  - {model: "m", hourly: [1.0e-05, 2.5]}\nheadroom: 0.1\noffers: []\n'
    )
    assert to_json_lines({"a": [1, 2], "b": {"c": 1}}) == '{\n  "a": [\n    1,\n    2\n  ],\n  "b": {"c": 1}\n}\n'


def test_numbers_that_files_do_not_have() -> None:
    for write in (to_yaml, to_json_lines):
        with pytest.raises(ValueError, match="JSON"):
            write({"headroom": float("nan")})
