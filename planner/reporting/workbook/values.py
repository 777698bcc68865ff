"""How values of an instance are written into cells and read back, so that nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from planner.reporting.workbook.layout import BETWEEN

#: What stands for values that a cell has no form for.
SPECIAL = ("null", "{}", "[]")


def to_cell(value: Any) -> Any:
    """A list as its parts with a ';' between; as JSON where a part would be misread. True is yes."""
    if value is True:
        return "yes"
    if value is None or value is False:
        return None
    if not isinstance(value, tuple | list):
        return value
    parts = [str(part) for part in value]
    text = f"{BETWEEN} ".join(parts)
    return text if names(text) == parts else json.dumps(list(value), ensure_ascii=False)


def names(text: str) -> Any:
    """The parts of a cell with a list; ValueError for JSON that is none."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(BETWEEN) if part.strip()]


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, scalar) of everything in a value: `nodes/0/device`. Escapes as RFC 6901, and ~2 before a key of digits."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from flattened(one, _joined(path, _escaped(str(key))))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for place, one in enumerate(value):
            yield from flattened(one, _joined(path, str(place)))
    else:
        yield path, scalar_text(value)


def scalar_text(value: Any) -> Any:
    """Numbers, truth values and plain text as they are; what would be misread as JSON."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return json.dumps(value) if value in SPECIAL or value[:1] in ("", '"') else value
    return json.dumps(value)


def scalar(text: Any) -> Any:
    """The value of such a cell; ValueError for text that starts as JSON and is none."""
    if not isinstance(text, str):
        return text
    return json.loads(text) if text in SPECIAL or text.startswith('"') else text


def unflattened(rows: Sequence[tuple[str, Any]]) -> Any:
    """What `flattened` took apart. Raises ValueError, with the path first, for paths that contradict one another."""
    root: dict[str, Any] = {}
    for path, value in rows:
        steps = path.split("/")
        here = root
        for step in steps[:-1]:
            here = here.setdefault(step, {})
            if not isinstance(here, dict):
                raise ValueError(path, "goes through a value")
        if steps[-1] in here:
            raise ValueError(path, "is given twice")
        here[steps[-1]] = value
    return _lists(root, "")


def _lists(value: Any, path: str) -> Any:
    if not isinstance(value, dict) or not value:
        return value
    if not all(key.isascii() and key.isdecimal() for key in value):
        return {_unescaped(key): _lists(one, _joined(path, key)) for key, one in value.items()}
    places = sorted(value, key=int)
    if [int(place) for place in places] != list(range(len(places))):
        raise ValueError(_joined(path, places[-1]), f"the entries of {path} are not 0 .. {len(places) - 1}")
    return [_lists(value[place], _joined(path, place)) for place in places]


def _joined(path: str, step: str) -> str:
    return f"{path}/{step}" if path else step


def _escaped(key: str) -> str:
    text = key.replace("~", "~0").replace("/", "~1")
    return f"~2{text}" if text.isdecimal() or not text else text


def _unescaped(step: str) -> str:
    return step.removeprefix("~2").replace("~1", "/").replace("~0", "~")
