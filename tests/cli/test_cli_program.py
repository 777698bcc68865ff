"""The program as a process of its own: start-up, pipes, terminals and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-c", "from cli.app import main; main()"]
#: Long enough for the first compilation of the search kernels on a slow machine.
PATIENCE_S = 240.0


def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **options}
    )


def test_start_up_imports_nothing_heavy() -> None:
    code = "import sys, cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "pydantic", "ortools", "pulp", "scipy", "numba", "rich", "planner", "formulations"}
    assert not heavy & set(loaded)


def test_help_and_version_import_nothing_heavy() -> None:
    for argument in ("--help", "--version"):
        code = f"import sys, atexit, cli.app; sys.argv = ['gpuplan', '{argument}']\n"
        code += "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); cli.app.main()"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "gpuplan" in result.stdout
        assert not {"numpy", "pydantic", "planner", "formulations"} & set(result.stderr.split())


def test_what_a_solver_prints_is_not_data() -> None:
    """HiGHS printed a line of its debugging before the JSON of 256 H200 that serve a 671B."""
    code = "import os, sys; from cli.command import keep_stdout; keep_stdout(); os.write(1, b'HiGHS'); print('data')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("data\n", "")


def test_help_tells_what_every_command_does() -> None:
    """No sentence is cut off on a terminal of 80 columns."""
    for command in ((), ("import",), ("catalog",)):
        shown = run(*command, "--help").stdout
        assert "..." not in shown.partition("Commands:")[2]


def test_completion_lists_commands_and_methods() -> None:
    words = {"_GPUPLAN_COMPLETE": "complete_bash"}
    assert "compare" in run(COMP_WORDS="gpuplan com", COMP_CWORD="1", **words).stdout
    found = run(COMP_WORDS="gpuplan plan x.json --method loc", COMP_CWORD="4", **words).stdout
    assert "local-search" in found


@pytest.mark.parametrize("method", ["cp-sat", "milp", "milp-cbc"])
def test_solvers_do_not_write_on_stdout(folder: Path, instance: dict[str, Any], method: str) -> None:
    """One layer of 8 experts in 12 slots: solved to proof, yet not by the start and the simple bounds alone."""
    loads = [{**load, "counts": [load["counts"][0][:8]]} for load in instance["loads"]]
    (folder / "layer.json").write_text(json.dumps({**instance, "num_slots": 12, "loads": loads}))
    result = run("plan", "layer.json", "--method", method, "--time-limit", "100", "--json")
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)["outcome"]
    assert outcome["status"] == "optimal"
    assert outcome["solver"] not in ("warm start", "local search")
    assert result.stderr == ""


def test_a_pipe_gets_neither_colours_nor_progress(folder: Path) -> None:
    result = run("plan", "small.json", "--work-limit", "200", FORCE_COLOR="", NO_COLOR="")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_closed_pipe_is_left_quietly(folder: Path, form: list[str]) -> None:
    command = [*PROGRAM, "plan", "small.json", "--method", "eplb", *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 141


class Terminal:
    """A pseudo-terminal that collects what is written to it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.text = b""
        self._done = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._done.is_set():
            if select.select([self._ours], [], [], 0.1)[0]:
                self.text += os.read(self._ours, 65536)

    def wait_for(self, text: bytes, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.text:
            assert process.poll() is None, "the program ended too soon"
            assert time.monotonic() < deadline, self.text[-500:]
            time.sleep(0.05)

    def close(self) -> None:
        self._done.set()
        self._reader.join()
        os.close(self._ours)
        os.close(self.theirs)


def test_ctrl_c_returns_the_checked_plan(folder: Path) -> None:
    terminal = Terminal()
    limits = ["--work-limit", "1e15", "--time-limit", "3600"]
    process = subprocess.Popen(
        [*PROGRAM, "plan", "small.json", "--json", *limits],
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    try:
        terminal.wait_for(b"incumbent", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        terminal.close()
    assert process.returncode == 0
    document = json.loads(output)
    assert document["outcome"]["stop"] == "interrupted"
    assert document["outcome"]["status"] == "feasible"
    assert document["verdict"]["feasible"]
    assert b"s left" in terminal.text


def test_a_method_of_several_problems_is_listed_for_each() -> None:
    from cli.options import methods

    assert "fleet: " in methods()["highs"]
    assert "parallel: " in methods()["highs"]
