"""What `gpuplan compare --set` solves: an instance as it is, and with some of its keys changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.command import tell
from cli.options import solve_options
from cli.progress import watched
from cli.render import printable
from formulations.batch.jobs import loc_of
from formulations.planning import plan, problem_of
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import Loc, SourceText, parse_source, read_source
from planner.overlay import Flag, over
from planner.plan import PlanDocument

AS_IT_IS = "as it is"
#: Variations of one command: as many columns as a wide terminal has room for, and more than anyone reads.
MAX_VARIATIONS = 24
MAX_TEXT = 10_000
#: Keys of instances that may be the path of a file that is a part of the instance.
FILES = {"cluster"}


@dataclass(frozen=True, slots=True)
class Search:
    """How each is solved."""

    time_limit_s: float
    work_limit: float | None
    seed: int
    threads: int | None
    gap: float | None
    method: str | None


def labels(changes: Sequence[str]) -> list[str]:
    """Names of the columns, the instance's own first. Raises OptionError for two equal variations."""
    if len(changes) > MAX_VARIATIONS:
        raise OptionError(
            f"{len(changes)} variations are more than {MAX_VARIATIONS}; `gpuplan batch --sweep` takes more"
        )
    if len(set(changes)) < len(changes):
        raise OptionError("two variations are the same")
    return [AS_IT_IS, *changes]


def solved(path: str, changes: Sequence[str], search: Search, quiet: bool) -> list[PlanDocument]:
    """Documents of the instance and of each variation. Every mistake of all of them is told before any is solved.

    Raises DescriptionError with mistakes located in the file or at the --set that makes them, and OptionError.
    """
    source = read_source(path)
    findings: list[Finding] = []
    problems: list[Any] = []
    for change in (None, *changes):
        try:
            varied = source if change is None else over(source, _flags(change, source))
            problems.append(problem_of(varied))
        except DescriptionError as error:
            # A mistake of the file itself is in every variation, too.
            findings += [one for one in error.findings if one not in findings]
    if findings:
        raise DescriptionError(findings)
    documents = []
    for name, problem in zip((AS_IT_IS, *changes), problems, strict=True):
        options = solve_options(
            problem.kind, search.time_limit_s, search.work_limit, search.seed, search.threads, search.gap, search.method
        )
        with watched(quiet) as on_progress:
            documents.append(plan(problem, options=options, on_progress=on_progress))
        for reason in documents[-1].outcome.reasons if documents[-1].plan is None else ():
            tell(printable(f"{name}: {reason}"))
    return documents


def _flags(change: str, source: SourceText) -> dict[Loc, Flag]:
    """Keys and values of one variation. Raises OptionError, and DescriptionError for a value that is no YAML."""
    if len(change) > MAX_TEXT or not change.isprintable():
        raise OptionError(f"--set takes one line of up to {MAX_TEXT} characters")
    given: dict[Loc, Flag] = {}
    for part in change.split(";"):
        key, equals, text = (one.strip() for one in part.partition("="))
        if not (key and equals and text):
            raise OptionError(f"--set is KEY=VALUE such as slo.ttft_s=1 (got {part.strip()[:80]!r})")
        loc = loc_of(key)
        if loc in given:
            raise OptionError(f"--set gives {key} twice in one variation")
        # Under a key, so that a bare word is a value and no document of its own.
        value = parse_source(f"value: {text}", f"--set {key}", Path.cwd()).value["value"]
        if value is None:
            raise OptionError(f"--set {key} has no value")
        given[loc] = Flag(f"--set {key}", value)
    return {**_opened(source, given), **given}


def _opened(source: SourceText, given: Iterable[Loc]) -> dict[Loc, Flag]:
    """Keys whose value is the path of a file, and inside which something is changed: what the file holds."""
    opened: dict[Loc, Flag] = {}
    keys = source.value if isinstance(source.value, dict) else {}
    for key in {str(loc[0]) for loc in given if len(loc) > 1} & FILES:
        if isinstance(keys.get(key), str):
            file = read_source(source.base_dir / keys[key])
            opened[key,] = Flag(key, file.value, _Inside(file.path, file.text, file.value, file.base_dir))
    return opened


class _Inside(SourceText):
    """A file that stands for one key of the instance: places in it are without that key."""

    def finding(self, loc: Loc, message: str) -> Finding:
        return super().finding(loc[1:], message)
