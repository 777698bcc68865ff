"""From a folder, a list file or a sweep to jobs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from formulations.outcome import DEFAULT_TIME_LIMIT_S, SolveOptions
from planner.descriptions.batch import MAX_JOBS, JobEntry, JobList
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import Loc, SourceText, canonical_json, parse_source, read_source, read_text, validate
from planner.overlay import Flag, over
from planner.version import gpuplan_version

#: Files of a folder that are instances, unless their names end as those that gpuplan writes beside them.
SUFFIXES = (".yaml", ".yml", ".json")
NOT_INSTANCES = (".best.json", ".plan.json")
#: Between a file and a swept key, where a mistake is located at the key.
SWEEP = ": sweep "
#: A step of a swept key: bare, or quoted where it holds a dot.
STEP = re.compile(r'"([^"]+)"|([^."]+)')
#: Beyond its time limit a job may read, judge and price: by this factor and these seconds it is ended.
HARD_FACTOR, HARD_EXTRA_S = 2.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How each job is solved: the options of a search on one thread, and the limits at which its process is ended."""

    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    work_limit: float | None = None
    seed: int = 0
    relative_gap: float | None = None
    method: str | None = None
    hard_time_limit_s: float | None = None
    memory_limit_bytes: float | None = None

    def __post_init__(self) -> None:
        _ = self.options
        if self.hard_time_limit_s is not None and not self.hard_time_limit_s >= self.time_limit_s:
            raise OptionError(f"the hard limit must not be below the time limit, got {self.hard_time_limit_s}")
        if self.memory_limit_bytes is not None and not self.memory_limit_bytes > 0:
            raise OptionError(f"the memory limit must be positive, got {self.memory_limit_bytes}")

    @property
    def options(self) -> SolveOptions:
        """Of each search. Raises OptionError."""
        return SolveOptions(
            time_limit_s=self.time_limit_s,
            work_limit=self.work_limit,
            seed=self.seed,
            relative_gap=self.relative_gap,
            method=self.method,
        )

    @property
    def ended_after_s(self) -> float:
        """When a job's process is ended."""
        if self.hard_time_limit_s is not None:
            return self.hard_time_limit_s
        return HARD_FACTOR * self.time_limit_s + HARD_EXTRA_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One instance to solve. Names are unique in a list.

    values : put over the instance's keys, by dotted path. current, move_price, horizon_hours : see `replanning`.
    """

    name: str
    path: str
    values: tuple[tuple[str, Any], ...] = ()
    current: str | None = None
    move_price: float | None = None
    horizon_hours: float | None = None

    def payload(self, settings: Settings) -> dict[str, Any]:
        """All that a worker needs, as JSON; `key` is a hash of it. Raises DescriptionError for an unreadable file."""
        said = {
            **asdict(self),
            "text": read_text(self.path),
            "version": gpuplan_version(),
            "settings": asdict(settings),
        }
        # The name stands for the path, so that a folder may be moved between two runs.
        key = hashlib.sha256(canonical_json({**said, "path": None}).encode()).hexdigest()
        return {**said, "key": key, "base_dir": str(Path(self.path).resolve().parent)}


def read_jobs(where: str, sweeps: Mapping[str, Sequence[Any]] | None = None) -> list[Job]:
    """Jobs of a folder, of a list file or of one instance; `sweeps` are put over each of them.

    A list file is YAML or JSON (see `planner.descriptions.batch`), or a .txt file with a path on each line. Raises
    DescriptionError with every mistake of the list; instances are read when it is their turn.
    """
    if where != "-" and Path(where).is_dir():
        jobs = [Job(name=str(path.relative_to(where)), path=str(path)) for path in _instances(Path(where))]
        if not jobs:
            raise DescriptionError.single(where, f"holds no instance ({', '.join(SUFFIXES)})")
    elif where.endswith(".txt"):
        lines = [line.strip() for line in read_text(where).splitlines()]
        entries = [{"instance": line} for line in lines if line and not line.startswith("#")]
        jobs = _of_list(SourceText(where, "", {"jobs": entries}, Path(where).resolve().parent))
    else:
        source = read_source(where)
        if isinstance(source.value, dict) and "problem" in source.value:
            jobs = [Job(name=Path(where).name, path=where)]
        else:
            jobs = _of_list(source)
    if sweeps:
        jobs = [swept for job in jobs for swept in _swept(job, sweeps, where)]
    return jobs


def _instances(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file())
    return [path for path in found if not path.name.endswith(NOT_INSTANCES)]


def _of_list(source: SourceText) -> list[Job]:
    value = source.value
    if isinstance(value, list):
        value = {"jobs": value}
    if isinstance(value, dict) and isinstance(value.get("jobs"), list):
        rows = [{"instance": row} if isinstance(row, str) else row for row in value["jobs"]]
        value = {**value, "jobs": rows}
    listed = validate(SourceText(source.path, source.text, value, source.base_dir), JobList)
    jobs: dict[str, Job] = {}
    findings: list[Finding] = []
    for place, entry in enumerate(listed.jobs):
        try:
            for job in _of_entry(entry, source.base_dir, source.path):
                # A file that two patterns take is one job.
                jobs.setdefault(job.name, job)
                if len(jobs) > MAX_JOBS:
                    raise DescriptionError([source.finding(("jobs", place), f"makes more than {MAX_JOBS} jobs")])
        except OptionError as error:
            findings.append(source.finding(("jobs", place), str(error)))
    if findings:
        raise DescriptionError(findings)
    return list(jobs.values())


def _of_entry(entry: JobEntry, base_dir: Path, where: str) -> Iterator[Job]:
    """Raises OptionError for a pattern without files and a swept key that is none."""
    paths = [base_dir / entry.instance]
    if any(char in entry.instance for char in "*?["):
        pattern = Path(entry.instance)
        root = Path(pattern.anchor) if pattern.is_absolute() else base_dir
        found = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
        paths = [path for path in found if path.is_file() and not path.name.endswith(NOT_INSTANCES)]
        if not paths:
            raise OptionError(f"{entry.instance} names no file")
    for path in paths:
        name = str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)
        job = Job(
            name=name,
            path=str(path),
            current=None if entry.current is None else str(base_dir / entry.current),
            move_price=entry.move_price,
            horizon_hours=entry.horizon_hours,
        )
        sweeps = {key: entry.values(key) for key in entry.sweep}
        yield from _swept(job, sweeps, where) if sweeps else [job]


def _swept(job: Job, sweeps: Mapping[str, Sequence[Any]], where: str) -> Iterator[Job]:
    for key in sweeps:
        loc_of(key)
    num_jobs = 1
    for values in sweeps.values():
        num_jobs *= len(values)
    if num_jobs > MAX_JOBS:
        raise OptionError(f"the sweep over {where} makes {num_jobs} jobs, at most {MAX_JOBS} are taken")
    for chosen in product(*sweeps.values()):
        values = tuple(zip(sweeps, chosen, strict=True))
        text = ",".join(f"{key}={value if isinstance(value, str) else canonical_json(value)}" for key, value in values)
        yield Job(
            name=f"{job.name}[{text}]",
            path=job.path,
            values=(*job.values, *values),
            current=job.current,
            move_price=job.move_price,
            horizon_hours=job.horizon_hours,
        )


def loc_of(key: str) -> Loc:
    """The steps of a dotted path; a step in quotes may hold dots. Raises OptionError."""
    found = list(STEP.finditer(key))
    if not found or ".".join(match.group(0) for match in found) != key:
        raise OptionError(f"{key!r} is no path of keys such as slo.ttft_s")
    return tuple(match.group(1) or match.group(2) for match in found)


def first_of_each_file(jobs: Iterable[Job]) -> Iterator[Job]:
    """One swept job of each instance file: what is enough to find a swept key that does not exist."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for job in jobs:
        what = (job.path, tuple(key for key, _ in job.values))
        if job.values and what not in seen:
            seen.add(what)
            yield job


def swept_source(job: Mapping[str, Any]) -> SourceText:
    """The instance of a job with its values put over it. Raises DescriptionError, at the swept key for a bad one."""
    source = _parsed(job["text"], job["path"], job["base_dir"])
    return over(source, {loc_of(key): Flag(f"{job['path']}{SWEEP}{key}", value) for key, value in job["values"]})


@lru_cache(maxsize=4)
def _parsed(text: str, path: str, base_dir: str) -> SourceText:
    # The jobs of a sweep share their text.
    return parse_source(text, path, Path(base_dir))
