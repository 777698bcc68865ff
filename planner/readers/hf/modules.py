"""Module patterns of quantisation files: exact names, globs and `re:` expressions, matched in bounded time.

The patterns come from outside, and a backtracking expression can run for years, so only expressions without repeated
groups and with few unbounded repeats are taken; anything else is a problem of the file.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from planner.readers.hf.fields import Fields

#: Most expressions and globs of a file that are tried on every module; names and beginnings of names are unlimited.
MAX_PATTERNS, MAX_PATTERN_LENGTH, MAX_REPEATS = 256, 200, 3

_REPEATED_GROUP = re.compile(r"\)[*+?{]|\(\?(?!:)|\\[1-9]|\{")
_REPEAT = re.compile(r"(?<!\\)[*+]")
#: Where the language model sits in a checkpoint, by class.
_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.", "backbone.")


@dataclass(frozen=True, slots=True)
class Modules:
    """A set of modules, as names, beginnings of names (`self_attn*`), globs and expressions say."""

    names: frozenset[str] = frozenset()
    beginnings: frozenset[str] = frozenset()
    expressions: tuple[re.Pattern[str], ...] = ()
    everything: bool = False

    def __contains__(self, name: str) -> bool:
        """Whether a module such as `layers.3.mlp.experts.0.up_proj`, or one that it lies in, is meant."""
        if self.everything:
            return True
        parts = name.split(".")
        spans = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        if self.names and any(span in self.names for span in spans):
            return True
        if self.beginnings and any(name[:end] in self.beginnings for end in range(1, len(name) + 1)):
            return True
        return any(one.match(prefix + name) for one in self.expressions for prefix in _PREFIXES)


def _bare(name: str) -> str:
    for prefix in sorted(_PREFIXES, key=len, reverse=True):
        if prefix and name.startswith(prefix):
            return name[len(prefix) :]
    return name


def modules(config: Fields, key: str, patterns: Iterable[str]) -> Modules:
    """Patterns -> the modules they mean; problems are noted at `key`."""
    names: set[str] = set()
    beginnings: set[str] = set()
    expressions: list[re.Pattern[str]] = []
    seen: set[str] = set()
    for pattern in patterns:
        if pattern in seen:
            continue
        seen.add(pattern)
        is_expression = pattern.startswith(("re:", "-:"))
        if not is_expression and not set(pattern) & set("*?["):
            names.add(_bare(pattern))
            continue
        if not is_expression and pattern.find("*") == len(pattern) - 1 > 0 and not set(pattern) & set("?["):
            beginnings.add(_bare(pattern[:-1]))
            continue
        text = pattern[3 if pattern.startswith("re:") else 2 :] if is_expression else pattern
        compiled = _expression(text) if is_expression else _glob(text)
        if compiled is None:
            config.problem(key, f"pattern {pattern[:60]!r} is too complex or not a valid expression")
        elif len(expressions) == MAX_PATTERNS:
            config.problem(key, f"has more than {MAX_PATTERNS} patterns")
            break
        else:
            expressions.append(compiled)
    return Modules(frozenset(names), frozenset(beginnings), tuple(expressions))


def _glob(text: str) -> re.Pattern[str] | None:
    """A shell pattern for a module or for anything below it."""
    if len(text) > MAX_PATTERN_LENGTH or "[" in text:
        return None
    return re.compile(f"(?:{fnmatch.translate(text)})|(?:{fnmatch.translate(text + '.*')})")


def _expression(text: str) -> re.Pattern[str] | None:
    if len(text) > MAX_PATTERN_LENGTH or _REPEATED_GROUP.search(text) or len(_REPEAT.findall(text)) > MAX_REPEATS:
        return None
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None
