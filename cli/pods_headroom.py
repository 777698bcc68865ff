"""`gpuplan pods --headroom`: how many more pods of one kind fit, as intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cli.command import ExitCode
from cli.render import console, printable, table
from cli.solving import Delivery, print_json
from formulations.outcome import SolveOptions
from formulations.pod_packing.headroom import headroom
from planner.errors import OptionError


def tell_headroom(problem: Any, pod: str, options: SolveOptions, delivery: Delivery) -> ExitCode:
    """Now, and after the moves that the instance allows."""
    if delivery.path is not None:
        raise OptionError("--headroom makes no plan that could be written; --json prints the answer")
    moves = [0] if problem.leave is None or not problem.leave.most else [0, problem.leave.most]
    rooms = list(headroom(problem, pod, moves, options))
    if delivery.as_json or delivery.output == "-":
        print_json({"pod": pod, "headroom": [asdict(room) for room in rooms]})
        return ExitCode.OK
    out = console()
    out.print(f"more pods like {printable(pod)} that fit, other pending pods aside", style="bold", soft_wrap=True)
    rows = [(str(room.moves), str(room.least), str(room.most), str(room.moved)) for room in rooms]
    out.print(table(("moves allowed", "at least", "at most", "moved"), rows))
    return ExitCode.OK
