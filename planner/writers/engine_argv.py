"""The engine's flags of a worker, out of the shell lines that start it: for files that hold flags and no shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from planner.errors import ExportError
from planner.plan import ParallelDocument
from planner.writers.serving_launch import Launch

#: Words before the flags, as the shell lines have them. Source: the ENGINE of vllm_serve and sglang_serve.
HEADS: Mapping[str, Sequence[str]] = {
    "vllm": ("exec", "vllm", "serve", "$MODEL"),
    "sglang": ("exec", "python", "-m", "sglang.launch_server", "--model-path", "$MODEL"),
}
#: The lines' last word: what the script's caller adds.
CALLERS = "$@"


def engine_flags(to: str, launch: Launch, body: Sequence[str], format_name: str) -> list[str]:
    """Flags and values without model and host; ExportError for an engine that needs more than its flags."""
    head = HEADS.get(to)
    if head is None:
        raise ExportError(
            f"{launch.worker.name}: {format_name} holds flags, and TensorRT-LLM reads a file too; export to trtllm"
        )
    lines = [line.removesuffix("\\") for line in body if not line.startswith("#")]
    words = shlex.split(" ".join(lines))
    assert tuple(words[: len(head)]) == tuple(head)
    assert words[-1] == CALLERS
    return words[len(head) : -1]


def model_name(document: ParallelDocument, shell_value: str, format_name: str) -> str:
    """The model as the engine is to load it; ExportError where the user has to convert or name the weights first."""
    if shell_value.startswith("${MODEL:?"):
        told = shlex.split(shell_value.removeprefix("${MODEL:?").removesuffix("}"))[0]
        raise ExportError(f"{told} first; {format_name} cannot leave it open, the script of the engine's format can")
    assert document.plan is not None
    return shlex.split(shell_value.removeprefix("${MODEL:-").removesuffix("}"))[0]
