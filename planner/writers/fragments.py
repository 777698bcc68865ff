"""Parts of instances as text: YAML that is one line an entry, with comments before it, or the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def to_yaml(document: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """A mapping as YAML; lists of mappings have one line each. Keys are plain words. Comments lose control characters.

    ValueError for values that JSON does not have (NaN among them).
    """
    lines = [f"# {_printable(comment)}" for comment in comments]
    for key, value in document.items():
        if isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: []")
            lines += [f"  - {_flow(item)}" for item in value]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def to_json_lines(document: Mapping[str, Any]) -> str:
    """A mapping as JSON; lists have one line an item. ValueError as above."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if isinstance(value, list) and value:
            items = (json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
            text = "[\n" + ",\n".join(f"    {item}" for item in items) + "\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        # Without a point, 1e-05 is a word to YAML 1.1.
        text = text.replace("e", ".0e")
    return text


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
