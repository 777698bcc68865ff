"""`gpuplan batch`: many instances into one file of results; `gpuplan results`: such files as a table."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import ExitCode, tell
from cli.options import OUTPUT, GapOption, JsonOption, MethodOption, QuietOption, SeedOption, WorkLimitOption

if TYPE_CHECKING:
    from formulations.batch.jobs import Job
    from formulations.batch.run import Progress
    from formulations.batch.table import Summary

RUN, LIMITS = "Run", "Limits of a job"
#: Without a terminal, seconds between two lines of progress: a line a minute suits a log.
LOG_EVERY_S = 60.0
#: Jobs without a plan that a summary names.
NAMED = 10

JobsArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOBS.yaml|DIR",
        help="a folder of instances, a list of them (YAML, JSON, or .txt with a path a line), or one instance",
    ),
]
ResultsOption = Annotated[
    str,
    typer.Option("--output", "-o", metavar="RESULTS.jsonl", help="a line is added for each job that ends"),
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES",
        help="each job once for each value: slo.ttft_s=1,2 or headroom=0..0.5:6 (points) or ..:6:log; repeatable",
    ),
]
TableOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="also write a table, a row a job: .csv, .parquet or .xlsx", rich_help_panel=OUTPUT
    ),
]
TimeLimitOption = Annotated[float, typer.Option(metavar="S", help="seconds of search", rich_help_panel=LIMITS)]
HardLimitOption = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="seconds after which the job's process is ended; default: twice the time limit and a minute",
        rich_help_panel=LIMITS,
    ),
]
MemoryLimitOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="such as 4GiB; a job above it is ended", rich_help_panel=LIMITS)
]
WorkersOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="jobs at once, each on one core; default: all cores", rich_help_panel=RUN),
]
EngineOption = Annotated[str, typer.Option(metavar="local|dask", help="where jobs run", rich_help_panel=RUN)]
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="of a running Dask cluster: tcp://host:8786", rich_help_panel=RUN),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="only the jobs K, K+N, ...; default: the task of a Slurm array, or the pod of an Indexed Job, if any",
        rich_help_panel=RUN,
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="go on with the results file; what is finished stays", rich_help_panel=RUN)
]
AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="resume although the list, the settings or gpuplan changed",
        rich_help_panel=RUN,
    ),
]


def batch(
    jobs: JobsArgument,
    output: ResultsOption,
    sweep: SweepOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
    resume: ResumeOption = False,
    accept_changes: AcceptOption = False,
    time_limit: TimeLimitOption = 30.0,
    hard_limit: HardLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    gap: GapOption = None,
    method: MethodOption = None,
    table: TableOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Plan many instances, one solver thread each, into a file of results that can be resumed.

    Each line of the file is one job: how it ended, its plan document, or why it has none. A bad instance among good
    ones is recorded and the others run.

    Exit codes: 0 all have a plan, else the worst of the jobs: 1 one crashed, 7 a bad description, 6 a budget is broken,
    5 no plan found or ended at a limit, 3 infeasible, 4 short of the asked gap. Before the first job: 2 usage, 7 a bad
    list.
    """
    from formulations.batch.jobs import Settings, read_jobs
    from formulations.batch.run import Shard, run_batch
    from formulations.batch.table import write_table
    from planner.errors import OptionError

    if engine not in ("local", "dask"):
        raise OptionError(f"--engine is local or dask, got {engine!r}")
    settings = Settings(
        time_limit_s=time_limit,
        work_limit=work_limit,
        seed=seed,
        relative_gap=gap,
        method=method,
        hard_time_limit_s=hard_limit,
        memory_limit_bytes=None if memory_limit is None else _bytes(memory_limit),
    )
    listed = read_jobs(jobs, dict(_sweep(text) for text in sweep or ()))
    _check_sweeps(listed)
    if table is not None:
        write_table(table, [])
    with _watched(quiet) as on_progress:
        try:
            run_batch(
                listed,
                output,
                settings,
                workers=workers,
                engine="dask" if engine == "dask" else "local",
                scheduler=scheduler,
                shard=Shard.from_environment(dict(os.environ)) if shard is None else Shard.parse(shard),
                resume=resume,
                accept_changes=accept_changes,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            tell(f"gpuplan: stopped; {output} holds what is finished, --resume goes on")
            return ExitCode.NO_PLAN
    return _deliver([output], table, as_json, quiet, gap)


def results(
    files: Annotated[list[str], typer.Argument(metavar="RESULTS.jsonl ...", help="results of `gpuplan batch`")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="TABLE", help="a .csv, .parquet or .xlsx file, a row a job")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Show how the jobs of one or more results files ended, and write them as a table.

    Exit codes: as of `gpuplan batch`.
    """
    return _deliver(files, output, as_json, quiet, None)


def _deliver(files: Sequence[str], table: str | None, as_json: bool, quiet: bool, asked_gap: float | None) -> ExitCode:
    from cli.solving import print_json
    from formulations.batch.table import Summary, how_it_ended, table_rows, write_table

    summary, rows, without, codes = Summary(), [], [], set()
    for row in table_rows(files):
        summary.add(row)
        codes.add(_code(row, asked_gap))
        if how_it_ended(row) not in ("optimal", "feasible"):
            without.append(row)
        if table is not None or as_json:
            rows.append(row)
    if table is not None:
        write_table(table, rows)
    if as_json:
        print_json({"jobs": sum(summary.counts.values()), "ends": dict(summary.counts), "rows": rows})
    elif not quiet:
        _print(summary, without, [*files, *([] if table is None else [table])])
    return next((code for code in WORST_FIRST if code in codes), ExitCode.OK)


WORST_FIRST = (
    ExitCode.CRASH,
    ExitCode.BAD_DESCRIPTION,
    ExitCode.BROKEN,
    ExitCode.NO_PLAN,
    ExitCode.INFEASIBLE,
    ExitCode.SHORT_OF_GAP,
)
CODES = {
    "crashed": ExitCode.CRASH,
    "died": ExitCode.CRASH,
    "invalid": ExitCode.BAD_DESCRIPTION,
    "refused": ExitCode.BAD_DESCRIPTION,
    "breaks a budget": ExitCode.BROKEN,
    "hard_time_limit": ExitCode.NO_PLAN,
    "memory_limit": ExitCode.NO_PLAN,
    "unknown": ExitCode.NO_PLAN,
    "infeasible": ExitCode.INFEASIBLE,
}


def _code(row: dict[str, Any], asked_gap: float | None) -> ExitCode:
    from formulations.batch.table import how_it_ended

    how = how_it_ended(row)
    if how == "feasible" and asked_gap is not None and (row["gap"] is None or row["gap"] > asked_gap):
        return ExitCode.SHORT_OF_GAP
    return CODES.get(how, ExitCode.OK)


def _print(summary: Summary, without: Sequence[dict[str, Any]], written: Iterable[str]) -> None:
    from cli.render import console, printable, table
    from formulations.batch.table import ORDER, how_it_ended

    out = console()
    total = sum(summary.counts.values())
    out.print(f"{total} jobs, {summary.seconds:.1f} s of work", style="bold")
    out.print(table(("", "jobs"), [(name, str(summary.counts[name])) for name in ORDER if summary.counts[name]]))
    for row in without[:NAMED]:
        why = f": {printable(str(row['error']))}" if row["error"] else ""
        out.print(f"  {printable(row['job'])} {how_it_ended(row)}{why}", soft_wrap=True)
    if len(without) > NAMED:
        out.print(f"  and {len(without) - NAMED} more without a plan")
    for path in written:
        out.print(f"  {'file':<13} {path}", soft_wrap=True)


def _bytes(text: str) -> float:
    from planner.errors import OptionError
    from planner.units import BYTE_UNITS, parse_quantity

    try:
        return parse_quantity(text, BYTE_UNITS, "a memory limit")
    except ValueError as error:
        raise OptionError(f"--memory-limit {text}: {error}") from None


def _sweep(text: str) -> tuple[str, Sequence[Any]]:
    """`key=a,b`, `key=first..last:points` or `key=first..last:points:log`. Raises OptionError."""
    from planner.descriptions.batch import MAX_POINTS, ValueRange
    from planner.errors import OptionError

    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise OptionError(f"--sweep is KEY=VALUES such as slo.ttft_s=1,2 (got {text!r})")
    if ".." not in values:
        return key, [_scalar(value) for value in values.split(",")]
    ends, _, rest = values.partition(":")
    points, _, scale = rest.partition(":")
    first, _, last = ends.partition("..")
    try:
        given = {"first": float(first), "last": float(last), "points": int(points), "scale": scale or "linear"}
        return key, ValueRange.model_validate(given).values()
    except ValueError:
        message = (
            f"--sweep {text}: a range is first..last:points or first..last:points:log, of 2 to {MAX_POINTS} points"
        )
        raise OptionError(message) from None


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_sweeps(jobs: Sequence[Job]) -> None:
    """A swept key that no instance has is a mistake of the list: told before anything runs, at the key."""
    from formulations.batch.jobs import SWEEP, Settings, first_of_each_file, swept_source
    from formulations.kinds import read_instance
    from planner.errors import DescriptionError

    findings = []
    for job in first_of_each_file(jobs):
        try:
            read_instance(swept_source(job.payload(Settings())))
        except DescriptionError as error:
            findings += [finding for finding in error.findings if SWEEP in finding.path]
    if findings:
        raise DescriptionError(findings)


@contextmanager
def _watched(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Progress with the time left on a terminal; in a log a line a minute; jobs that fail are named as they do."""
    if quiet:
        yield lambda progress: None
        return
    if not sys.stderr.isatty():
        yield _Log()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from cli.render import console

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            if progress.record is None:
                bar.update(task, total=progress.num_jobs - progress.num_before)
                return
            bar.update(task, advance=1, description=str(progress.record["job"]))
            _tell_failure(progress)

        yield show


class _Log:
    """Lines for a log."""

    def __init__(self) -> None:
        self.started_s = self.told_s = time.monotonic()
        self.ended = 0

    def __call__(self, progress: Progress) -> None:
        if progress.record is None:
            if progress.num_before:
                tell(f"{progress.num_before} of {progress.num_jobs} jobs are finished already")
            return
        self.ended += 1
        _tell_failure(progress)
        now = time.monotonic()
        if now - self.told_s >= LOG_EVERY_S:
            self.told_s = now
            left = progress.num_jobs - progress.num_before - self.ended
            seconds = (now - self.started_s) / self.ended * left
            tell(f"{progress.num_before + self.ended} of {progress.num_jobs} jobs, about {seconds:.0f} s left")


def _tell_failure(progress: Progress) -> None:
    record = progress.record
    if record is not None and record["end"] != "done":
        tell(f"{record['job']}: {record['end']}: {next(iter(record['errors']), '')}")
