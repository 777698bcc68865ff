"""Writes the pages of the documentation that are made from the program itself: `python docs/tools/pages.py`.

docs/reference/instances.md, plans.md and other_files.md from the JSON Schemas, commands.md from the help texts, and
accuracy.md from the README. A test holds what is in git against what this writes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import click  # noqa: E402
import typer  # noqa: E402
from plain_text import escaped, to_markdown  # noqa: E402

from cli.app import app  # noqa: E402
from planner.schemas import KINDS, schema  # noqa: E402

MADE = "<!-- Made by docs/tools/pages.py; do not edit. -->\n"
#: Columns of help texts.
WIDTH = 100
#: JSON's types in plain words.
NAMES = {"string": "text", "integer": "whole number", "boolean": "true or false"}
Schema = Mapping[str, Any]


def pages() -> dict[str, str]:
    """Text of every page by its path below docs/."""
    by_page: dict[str, list[str]] = {"instances": [], "plans": [], "other_files": []}
    for kind, model in KINDS.items():
        fields = model.model_fields
        page = "plans" if "outcome" in fields else "instances" if "problem" in fields else "other_files"
        by_page[page].append(kind)
    intros = {
        "instances": "# Instance files\n\nWhat `gpuplan plan INSTANCE` reads, YAML or JSON. Paths in a file are"
        " relative to it. Quantities are numbers in SI units or text with a unit, such as `80GiB`, `400Gbit/s` or"
        " `30ms`.",
        "plans": "# Plan documents\n\nWhat `gpuplan plan -o plan.json` writes, one kind for each problem. Bound and gap"
        " are null where they are not known.",
        "other_files": "# Hardware and calibration files\n\nFiles that instances name, or that options take.",
    }
    found = {f"reference/{name}.md": _schema_page(intros[name], kinds) for name, kinds in by_page.items()}
    return {**found, "reference/commands.md": _commands(), "reference/accuracy.md": _accuracy()}


def _schema_page(intro: str, kinds: list[str]) -> str:
    """Every kind, then the parts that they share, each once."""
    parts: dict[str, Schema] = {}
    text = [MADE + intro, "`gpuplan schema KIND` prints the JSON Schema, for editors and validators."]
    for kind in kinds:
        full = schema(kind)
        # Parts that were renamed before, innermost first: what holds them is then the same, too.
        for known in (name for name in parts if " of " in name):
            name = known.partition(" of ")[0]
            if full.get("$defs", {}).get(name) == parts[known]:
                full = _renamed(full, name, known)
        for name, part in full.get("$defs", {}).items():
            if parts.get(name, part) != part:
                full = _renamed(full, name, f"{name} of {kind}")
        parts |= full.get("$defs", {})
        text.append(f"## `{kind}`")
        text += _described(full)
    text += ["## Parts"] if parts else []
    for name in sorted(parts):
        text.append(f"### {name}")
        text += _described(parts[name])
    return "\n\n".join(text) + "\n"


def _renamed(of: Schema, name: str, new: str) -> Schema:
    """With another name for a part, where other kinds of files mean something else by it."""
    renamed: Schema = json.loads(json.dumps(of).replace(f'"#/$defs/{name}"', f'"#/$defs/{new}"'))
    parts = {new if key == name else key: part for key, part in renamed["$defs"].items()}
    return {**renamed, "$defs": parts}


def _described(of: Schema) -> Iterator[str]:
    """What a schema says of itself, and its keys as a table."""
    if "description" in of:
        yield to_markdown(of["description"])
    if "enum" in of:
        yield f"One of {_type(of)}."
    properties: Mapping[str, Schema] = of.get("properties", {})
    if not properties:
        return
    rows = ["| key | what it holds | default | |", "| --- | --- | --- | --- |"]
    for key, one in properties.items():
        default = "required" if key in of.get("required", ()) else _default(one)
        rows.append(f"| `{key}` | {_type(one)} | {default} | {_cell(escaped(_meaning(one)))} |")
    yield "\n".join(rows)


def _meaning(of: Schema) -> str:
    """The description, or that of the alternative that has one."""
    return next((one["description"] for one in (of, *of.get("anyOf", ())) if "description" in one), "")


def _default(of: Schema) -> str:
    value = of.get("default")
    return "" if value is None else f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _type(of: Schema) -> str:
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower().replace(' ', '-')})"
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    for word in ("anyOf", "oneOf"):
        if word in of:
            kinds = dict.fromkeys(_type(one) for one in of[word] if one.get("type") != "null")
            return " or ".join(kinds)
    kind = of.get("type")
    if kind == "array":
        fixed = of.get("prefixItems")
        inner = ", ".join(_type(one) for one in fixed) if fixed else _type(of.get("items", {}))
        return f"list of {inner}"
    if kind == "object":
        values = of.get("additionalProperties")
        return f"map of names to {_type(values)}" if isinstance(values, dict) else "map of names to anything"
    return ", ".join([NAMES.get(kind, kind or "anything"), *_limits(of)])


def _limits(of: Schema) -> list[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return [f"{sign} {of[word]:,}" for word, sign in signs.items() if word in of]


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.split()))


def _commands() -> str:
    """Help of every command, as it is printed."""
    root = typer.main.get_command(app)
    text = [MADE + "# Commands\n\nThe help of every command. Data goes to standard output, all else to standard error."]
    for path, command in _walk(root, ("gpuplan",)):
        context = click.Context(command, info_name=" ".join(path), terminal_width=WIDTH, max_content_width=WIDTH)
        text.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context).rstrip()}\n```")
    return "\n\n".join(text) + "\n"


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from _walk(one, (*path, name))


def _accuracy() -> str:
    """The README's table of errors."""
    title = "How far the cost model is off"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {title}\n(.*?)(?=^## )", readme, flags=re.MULTILINE | re.DOTALL)
    if section is None:
        raise SystemExit(f"README.md has no section {title!r}")
    return f"{MADE}# {title}\n\n{section.group(1).strip()}\n"


if __name__ == "__main__":
    for name, text in pages().items():
        path = ROOT / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
