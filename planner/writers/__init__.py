"""Plan documents -> the files of serving engines and tools, one format a module, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import ExportError, OptionError
from planner.plan import PlanDocument

__all__ = ["WRITERS", "Writer", "export"]


@dataclass(frozen=True, slots=True)
class Writer:
    """One export format: what it is, the problem whose plans it holds, and what writes the file."""

    summary: str
    problem: str
    write: Callable[[Any, str], None]


def _module(name: str) -> Callable[[Any, str], None]:
    """The `write` function of planner.writers.<name>, imported when it is called."""

    def write(document: PlanDocument, path: str) -> None:
        importlib.import_module(f"planner.writers.{name}").write(document, path)

    return write


WRITERS: Mapping[str, Writer] = {
    "exflow-csv": Writer("ExFlow solution CSV (Expert,Node)", "experts", _module("exflow")),
    "moves": Writer("ordered expert moves from the current placement, CSV or JSON", "experts", _module("moves")),
    "sglang": Writer("SGLang --init-expert-location JSON and its launch flags", "experts", _module("sglang")),
    "trtllm": Writer("TensorRT-LLM moe_load_balancer.yaml", "experts", _module("trtllm")),
    "vllm": Writer("none: vLLM 0.33 reads no expert map; says what is possible", "experts", _module("vllm")),
    "vllm-ascend": Writer("vLLM Ascend expert map JSON and its launch flags", "experts", _module("vllm_ascend")),
}


def export(document: PlanDocument, to: str, path: str) -> None:
    """Write the plan as format `to` to `path` ('-' is standard output), whole or not at all.

    Raises OptionError (unknown format, unusable path) and ExportError (no plan that fits the format).
    """
    writer = WRITERS.get(to)
    if writer is None:
        raise OptionError(f"unknown export format {to!r}; known: {', '.join(sorted(WRITERS))}")
    if writer.problem != document.problem:
        raise ExportError(f"{to} holds plans of {writer.problem!r}, this is a plan of {document.problem!r}")
    if document.plan is None:
        raise ExportError(f"the document holds no plan (status {document.outcome.status})")
    writer.write(document, path)
