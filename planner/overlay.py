"""Values put over a described file: by flags of the command line, or by the steps of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.errors import DescriptionError, Finding
from planner.files import Loc, SourceText


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag on the command line and the value it gives to a key; None when it was not given.

    source : the file that the value was read from, under the same key; mistakes in it are located there.
    """

    name: str
    value: Any = None
    source: SourceText | None = None


@dataclass(frozen=True)
class MergedSource(SourceText):
    """A file's text with values of flags put over it; what is wrong with those is located at the flag.

    below : the source without them, which locates everything else; None for the text itself.
    """

    flags: Mapping[Loc, Flag] = field(default_factory=dict)
    below: SourceText | None = None

    def finding(self, loc: Loc, message: str) -> Finding:
        """A Finding at the flag that gave the value, or in the file that the flag named, else in the instance."""
        for length in range(len(loc), 0, -1):
            flag = self.flags.get(loc[:length])
            if flag is None:
                continue
            if flag.source is not None:
                return flag.source.finding(loc, message)
            rest = ".".join(str(step) for step in loc[length:])
            return Finding(flag.name, f"{rest}: {message}" if rest else message)
        return super().finding(loc, message) if self.below is None else self.below.finding(loc, message)


def over(source: SourceText, flags: Mapping[Loc, Flag], all_located: bool = False) -> SourceText:
    """Put the flags' values over the keys; `all_located` also places what is missing at its flag.

    A step into a list is a position, or the `name` of one of its entries. Raises DescriptionError, at the flag, for a
    step that leads nowhere.
    """
    given = {loc: flag for loc, flag in flags.items() if flag.value is not None}
    if not isinstance(source.value, dict) or not (given or all_located):
        return source
    value, placed, lost = source.value, dict[Loc, Flag](), list[Finding]()
    for loc, flag in given.items():
        try:
            value, where = _with(value, loc, flag.value)
            placed[where] = flag
        except KeyError as error:
            lost.append(Finding(flag.name, f"leads nowhere in {source.path}: {error.args[0]}"))
    if lost:
        raise DescriptionError(lost)
    return MergedSource(source.path, source.text, value, source.base_dir, flags if all_located else placed, source)


def _with(parent: Any, loc: Loc, value: Any) -> tuple[Any, Loc]:
    """A copy of the parent with one value changed, and its place by keys and positions. Raises KeyError."""
    if not loc:
        return value, ()
    step, rest = loc[0], loc[1:]
    if isinstance(parent, list):
        place = _position(parent, step)
        child, where = _with(parent[place], rest, value)
        return [*parent[:place], child, *parent[place + 1 :]], (place, *where)
    # What is no mapping is replaced: a mistake of the file that the flag mends.
    keys = parent if isinstance(parent, dict) else {}
    child, where = _with(keys.get(step), rest, value)
    return {**keys, step: child}, (step, *where)


def _position(entries: list[Any], step: int | str) -> int:
    if isinstance(step, int) or step.isdecimal():
        if int(step) < len(entries):
            return int(step)
        raise KeyError(f"there are {len(entries)} entries, {int(step)} is not one of 0 .. {len(entries) - 1}")
    named = [place for place, entry in enumerate(entries) if isinstance(entry, dict) and entry.get("name") == step]
    if len(named) == 1:
        return named[0]
    raise KeyError(f"{len(named) or 'no'} entries are named {step!r}")
