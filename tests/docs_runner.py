"""Reads a page of the documentation and runs what it shows. How pages are written: docs/extend/documentation.md."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from typer.testing import CliRunner

from cli.app import app
from formulations.planning import problem_of
from planner.cluster import Cluster
from planner.descriptions.batch import JobList
from planner.files import canonical_json, parse_source, validate
from planner.hardware import DeviceKind

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: Shown and not run: they need a cluster, an engine or a browser, or measurements that are not shipped.
OUTSIDE = (
    "kubectl ",
    "CUDA_VISIBLE_DEVICES=",
    "APPLY=1 ",
    "sh plan.sh",
    "python -m benchmarks",
    "make ",
    "pip install",
)
#: Run by the shell.
SHELL = ("cat ", "head ", "sed ", "cp ")
#: Languages of blocks that are text, or that another test reads.
TEXT = ("text", "cron", "bash", "")
BLOCK = re.compile(
    r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$|^((?:    [^\n]*\n|\n(?=    ))+)", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """A block of a page: its language, the file that it is, what it holds, and what is printed where that is shown."""

    language: str
    title: str | None
    text: str
    printed: str | None = None


def steps(page: str) -> Iterator[Step]:
    """The blocks of a page in order; `text` after Python is what that prints."""
    found = [
        Step("indented", None, re.sub(r"^    ", "", match[4], flags=re.MULTILINE).strip("\n"))
        if match[4]
        else Step(match[1], match[2], match[3].rstrip("\n"))
        for match in BLOCK.finditer(page)
    ]
    after = [*found, None][1:]
    for step, following in zip(found, after, strict=True):
        if step.language == "python" and following is not None and following.language == "text":
            step = Step("python", step.title, step.text, following.text)
        yield step


def commands(text: str) -> Iterator[tuple[str, str | None]]:
    """Commands of a block; with what each prints where they begin with `$ `."""
    joined = re.sub(r"\\\n\s*", "", text)
    if not joined.startswith("$ "):
        yield from ((line, None) for line in joined.splitlines() if line.strip())
        return
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


@dataclass
class Runner:
    """Runs the steps of one page in the current folder."""

    page: str
    instance: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    ran: int = 0

    def run(self, step: Step) -> None:
        """Write the file, run the commands or the Python, or validate the description that a block is."""
        is_commands = step.language == "console" or (
            step.language in ("indented", "") and step.text.startswith(("gpuplan ", "$ ", *OUTSIDE, *SHELL))
        )
        if is_commands:
            for command, printed in commands(step.text):
                self._command(command, printed)
        elif step.language == "python":
            self._python(step)
        elif step.language in ("yaml", "json", "csv"):
            self._file(step)
        elif step.title is not None:
            Path(step.title).write_text(step.text + "\n", encoding="utf-8")
        else:
            assert step.language in ("indented", *TEXT), f"{self.page}: a block of {step.language} that nothing checks"
            commands_in_it = step.language != "bash" and re.search(r"^gpuplan ", step.text, flags=re.MULTILINE)
            assert not commands_in_it, f"{self.page}: a block that does not begin with its commands: {step.text}"

    def _command(self, line: str, printed: str | None) -> None:
        line, _, comment = line.partition("  #")
        expected = int(code[1]) if (code := re.search(r"exit code (\d)", comment)) else 0
        if line.startswith(OUTSIDE) or comment.strip().startswith("needs "):
            return
        if line.startswith("gpuplan "):
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            code, output = result.exit_code, result.output
        else:
            assert line.startswith(SHELL), f"{self.page}: nothing runs {line!r}"
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            code, output = done.returncode, done.stdout + done.stderr
        self.ran += 1
        assert code == expected, f"{self.page}: {line}\nexit code {code}\n{output}"
        if printed is not None:
            compare(f"{self.page}: {line}", printed, output)

    def _python(self, step: Step) -> None:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(step.text, self.page, "exec", dont_inherit=True), self.names)
        self.ran += 1
        if step.printed is not None:
            compare(self.page, step.printed, output.getvalue())

    def _file(self, step: Step) -> None:
        """A file with a title is written; one without is a part of the page's instance, and read together with it."""
        self.ran += 1
        if step.title is not None:
            path = Path(step.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text + "\n", encoding="utf-8")
            if step.language == "yaml":
                keys = YAML(typ="safe", pure=True).load(step.text)
                self.instance = keys if "problem" in keys else self.instance
            return
        source = parse_source(step.text, self.page, Path.cwd())
        keys = source.value
        if "apiVersion" in keys:
            return  # a manifest, for tests of its own
        if "jobs" in keys:
            validate(source, JobList)
        elif step.text.startswith("# device"):
            validate(source, DeviceKind)
        elif step.text.startswith("# cluster"):
            validate(source, Cluster)
        else:
            whole = keys if "problem" in keys else {**self.instance, **keys}
            problem_of(parse_source(canonical_json(whole), f"{self.page}: {step.text}", Path.cwd()))


def compare(place: str, shown: str, printed: str) -> None:
    """What a page shows is what is printed; `...` stands for lines, or within a line for words, that are left out."""
    rest = iter(_plain(printed))
    gap = False
    for line in _plain(shown):
        if line.strip() == "...":
            gap = True
            continue
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        found = next((one for one in rest if not gap or re.fullmatch(pattern, one)), "the end")
        assert re.fullmatch(pattern, found), f"{place}\nshown is\n{line}\nprinted is\n{found}\nin\n{printed}"
        gap = False
    left = list(rest)
    assert gap or not left, f"{place}\nprints more than is shown: {left}"


def _plain(text: str) -> list[str]:
    """Lines without what differs from run to run: times of the search, hashes, rules of tables."""
    lines = [re.sub(r"sha256 [0-9a-f]+", "sha256 #", line.rstrip()) for line in text.splitlines()]
    lines = [re.sub(r"[\d.]+ s\b", "# s", line) if line.strip().startswith("search ") else line for line in lines]
    return [line for line in lines if line.strip()]
