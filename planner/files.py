"""Our own files: YAML and JSON in, with every problem located at file:line:column; JSON out, atomically.

Reading goes parse -> validate -> locate: values are parsed by the fast plain parsers, validated by pydantic, and only
when something is wrong is the text composed again into a tree with line and column marks. Files come from outside and
are hostile: sizes are bounded, YAML tags build no objects, alias bombs and cycles are refused, duplicate keys and
non-finite numbers are errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from planner.descriptions.base import COLLECT_PROBLEMS, Description
from planner.errors import DescriptionError, Finding

#: Largest text file that is read; a description of a 5,000-node cluster is about 60 MB of kubectl JSON.
MAX_TEXT_BYTES = 512 * 2**20
#: Largest YAML file; ruamel's pure parser needs about a minute for this much. Bulk data belongs into JSON or .npy.
MAX_YAML_BYTES = 32 * 2**20
#: Longest text in which findings are given a line and a column.
MAX_LOCATED_CHARS = 16 * 2**20
#: Most nodes a YAML document may have after its aliases are expanded.
MAX_EXPANDED_NODES = 2_000_000
#: Characters of a text that count as one node.
TEXT_PER_NODE = 32
#: Names of files that are workbooks; macros in them are never looked at.
WORKBOOK_SUFFIXES = (".xlsx", ".xlsm")
#: How many problems of one file are shown before the rest is counted.
MAX_FINDINGS = 100

Loc = tuple[int | str, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class SourceText:
    """A file's text and its parsed value. `base_dir` is what relative paths inside it are relative to."""

    path: str
    text: str
    value: Any
    base_dir: Path

    @property
    def sha256(self) -> str:
        """Hash of the text as it was read."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def _tree(self) -> Any:
        # Composing takes about a minute for this much; a file above it has its findings without a line.
        return _compose(self.text, self.path) if len(self.text) <= MAX_LOCATED_CHARS else None

    def position(self, loc: Loc) -> tuple[int | None, int | None]:
        """Line and column (from 1) of the value at `loc`, of its key for a mapping entry, or of its nearest parent."""
        try:
            node = self._tree
        except DescriptionError:
            return None, None
        mark = None if node is None else node.start_mark
        for step in loc:
            found = _child(node, step)
            if found is None:
                break
            node, mark = found
        return (None, None) if mark is None else (mark.line + 1, mark.column + 1)

    def finding(self, loc: Loc, message: str) -> Finding:
        """A Finding at `loc`, whose message starts with the dotted path."""
        line, column = self.position(loc)
        dotted = ".".join(str(step) for step in loc)
        return Finding(self.path, f"{dotted}: {message}" if dotted else message, line, column)


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Text of a file, or of standard input for '-'. Raises DescriptionError (missing, too large, not UTF-8)."""
    if str(path) == "-":
        raw = sys.stdin.buffer.read(max_bytes + 1)
    else:
        try:
            with open(path, "rb") as file:
                raw = file.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DescriptionError.single(path, f"cannot be read: {reason}") from None
    if len(raw) > max_bytes:
        raise DescriptionError.single(path, f"is larger than {max_bytes} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DescriptionError.single(path, f"is not UTF-8 text (byte {error.start})") from None


def read_source(path: str | Path) -> SourceText:
    """Read and parse a YAML or JSON file ('-' is standard input). JSON is recognised by its first character.

    A workbook, by its suffix, is read as the instance that is filled in there.
    """
    if Path(path).suffix.lower() in WORKBOOK_SUFFIXES:
        from planner.readers.workbook import read_workbook

        return read_workbook(path)
    name = "<stdin>" if str(path) == "-" else str(path)
    text = read_text(path)
    base_dir = Path.cwd() if str(path) == "-" else Path(path).resolve().parent
    return parse_source(text, name, base_dir)


def parse_source(text: str, name: str, base_dir: Path) -> SourceText:
    """Parse the text of a YAML or JSON file of that name. Raises DescriptionError."""
    value = parse_json(text, name) if text.lstrip()[:1] in "{[" and _is_json(text) else _parse_yaml(text, name)
    return SourceText(name, text, value, base_dir)


def _is_json(text: str) -> bool:
    """Whether to take text that starts with a bracket as JSON: YAML in flow style leaves its keys and words bare."""
    start = text.lstrip() or " "
    body = start[1:].lstrip()
    if start[0] == "{":
        return body[:1] in ('"', "}")
    return body[:1] in tuple('"{[]-0123456789') or body.startswith(("true", "false", "null"))


def parse_json(text: str, name: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN or Infinity. Raises DescriptionError with line and column."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            seen: set[str] = set()
            twice = sorted({key for key, _ in items if key in seen or seen.add(key)})  # type: ignore[func-returns-value]
            raise DescriptionError.single(name, f"duplicate key {', '.join(map(repr, twice))}")
        return result

    def constant(text: str) -> Any:
        raise DescriptionError.single(name, f"{text} is not a number that can be used")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise DescriptionError.single(name, f"not valid JSON: {error.msg}", error.lineno, error.colno) from None
    except RecursionError:
        raise DescriptionError.single(name, "is nested too deeply") from None
    except ValueError as error:
        raise DescriptionError.single(name, f"not valid JSON: {error}") from None


def _parse_yaml(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text) > MAX_YAML_BYTES:
        raise DescriptionError.single(name, f"YAML above {MAX_YAML_BYTES} bytes: use JSON or .npy for bulk data")
    _refuse_bombs(_compose(text, name), name)
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise _yaml_error(error, name) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise DescriptionError.single(name, f"not valid YAML: {error}") from None


def _compose(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise _yaml_error(error, name) from None
    except RecursionError:
        raise DescriptionError.single(name, "is nested too deeply") from None
    except (YAMLError, ValueError) as error:
        raise DescriptionError.single(name, f"not valid YAML: {error}") from None


def _yaml_error(error: Any, name: str) -> DescriptionError:
    mark = error.problem_mark or error.context_mark
    message = f"not valid YAML: {error.problem or error}"
    return DescriptionError.single(
        name, message, None if mark is None else mark.line + 1, None if mark is None else mark.column + 1
    )


def _own_size(node: Any) -> int:
    """1, and more for a long text, so that aliases of it count for what they expand to."""
    return 1 + (len(node.value) // TEXT_PER_NODE if isinstance(node.value, str) else 0)


def _children(node: Any) -> list[Any]:
    if isinstance(node.value, list):
        if node.id == "mapping":
            return [child for pair in node.value for child in pair]
        return list(node.value)
    return []


def _refuse_bombs(root: Any, name: str) -> None:
    """Refuse alias cycles and documents that aliases blow up beyond MAX_EXPANDED_NODES."""
    if root is None:
        return
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, leaving = stack.pop()
        if leaving:
            open_nodes.discard(id(node))
            sizes[id(node)] = _own_size(node) + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > MAX_EXPANDED_NODES:
                raise DescriptionError.single(name, "aliases expand to too many nodes", node.start_mark.line + 1)
        elif id(node) in open_nodes:
            raise DescriptionError.single(name, "an alias contains itself", node.start_mark.line + 1)
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))


def _child(node: Any, step: int | str) -> tuple[Any, Any] | None:
    if node is None or not isinstance(node.value, list):
        return None
    if node.id == "mapping":
        for key, value in node.value:
            if key.value == str(step):
                return value, key.start_mark
    elif isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step].start_mark
    return None


def validate(source: SourceText, model: type[ModelT]) -> ModelT:
    """Validate a parsed file against a pydantic model; DescriptionError lists every problem with its place."""
    try:
        payload = json.dumps(source.value)
    except (TypeError, ValueError) as error:
        raise DescriptionError.single(source.path, f"holds a value with no JSON form: {error}") from None
    try:
        result = model.model_validate_json(payload, strict=True, context={COLLECT_PROBLEMS: True})
    except ValidationError as error:
        raise DescriptionError(_findings(source, error)) from None
    if isinstance(result, Description):
        problems = list(result.all_problems())
        if problems:
            raise DescriptionError([source.finding(loc, message) for loc, message in problems])
    return result


def _in_file(value: Any, loc: Loc) -> Loc:
    """The place without the tags of unions, which pydantic names on the way and the file does not have."""
    kept: list[str | int] = []
    for place, step in enumerate(loc):
        inside = isinstance(value, dict) and step in value
        inside |= isinstance(value, list) and isinstance(step, int) and step < len(value)
        if inside:
            value = value[step]
        elif place + 1 < len(loc):
            continue
        kept.append(step)
    return tuple(kept)


def _findings(source: SourceText, error: ValidationError) -> list[Finding]:
    findings = []
    errors = error.errors(include_url=False, include_context=False, include_input=True)
    within = {item["loc"][:depth] for item in errors for depth in range(len(item["loc"]))}
    # A list is short of its bad entries, too; they are told themselves.
    errors = [item for item in errors if item["type"] != "too_short" or item["loc"] not in within]
    for item in errors[:MAX_FINDINGS]:
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "too_short" and not item["input"]:
            message = "is empty"
        elif isinstance(item.get("input"), int | float | str | bool):
            message = f"{message} (got {str(item['input'])[:80]!r})"
        findings.append(source.finding(_in_file(source.value, item["loc"]), message))
    if len(errors) > MAX_FINDINGS:
        findings.append(Finding(source.path, f"and {len(errors) - MAX_FINDINGS} more problems"))
    return findings


def read_as(path: str | Path, model: type[ModelT]) -> ModelT:
    """Read a YAML or JSON file as one description or plan document."""
    return validate(read_source(path), model)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces; what hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_json(document: BaseModel) -> str:
    """A description or plan as indented JSON; rows of numbers stay on one line each so that diffs are readable."""
    return _dump(document.model_dump(mode="json", exclude_none=False, by_alias=True), 0) + "\n"


def _dump(value: Any, depth: int) -> str:
    flat = json.dumps(value, allow_nan=False, ensure_ascii=False)
    nested = isinstance(value, dict | list) and any(isinstance(v, dict | list) for v in _values(value))
    short = len(flat) <= 100 or isinstance(value, list)
    if not value or not isinstance(value, dict | list) or (short and not nested):
        return flat
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        body = (f"{json.dumps(key, ensure_ascii=False)}: {_dump(item, depth + 1)}" for key, item in value.items())
        return "{\n" + ",\n".join(pad + line for line in body) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _dump(item, depth + 1) for item in value) + f"\n{end}]"


def _values(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file or nothing ('-' is standard output)."""
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of a new file."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename: the target is never half-written.

    Raises DescriptionError when the folder is missing or not writable.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
        os.close(handle)
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be written: {error.strerror or error}") from None
    try:
        write(temporary)
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
