"""`vllm-config`: the YAML file of `vllm serve --config FILE` (0.33), for a plan with one kind of worker.

Keys are the long flags without their dashes, a flag without a value is `true`, JSON values are text. Source: vLLM's
reference of its configuration file. A folder as the target gets one file a kind of worker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from planner.errors import ExportError
from planner.files import write_text
from planner.kubernetes.names import label
from planner.plan import ParallelDocument
from planner.writers.common import comments
from planner.writers.engine_argv import engine_flags, model_name
from planner.writers.kube import names, started_workers
from planner.writers.serving_launch import told


def write(document: ParallelDocument, path: str) -> None:
    """A file, or one a kind of worker in the folder `path`; ExportError for what a file of flags cannot express."""
    engine, started, shell_model = started_workers(document.plan)
    if engine.to != "vllm":
        raise ExportError(f"the plan was made for {engine.to}, and this is vLLM's file; plan again with backend vllm")
    into_folder = path != "-" and Path(path).is_dir()
    if len(started) > 1 and not into_folder:
        kinds = ", ".join(label(launch.worker.name) for launch, _ in started)
        raise ExportError(f"the plan has {len(started)} kinds of workers ({kinds}): give a folder, for a file each")
    model = model_name(document, shell_model, "vllm-config")
    texts: list[tuple[str, str]] = []
    for (launch, body), name in zip(started, names(started), strict=True):
        if launch.nodes > 1:
            raise ExportError(
                f"{launch.worker.name}: each of its {launch.nodes} nodes needs flags of its own (rank, address),"
                " which one file cannot hold; export to vllm or lws"
            )
        flags = engine_flags(engine.to, launch, body, "vllm-config")
        target = str(Path(path) / f"{name}.yaml") if into_folder else path
        assert document.plan is not None
        said = (f"start {launch.worker.count} of these: vllm serve --config FILE", *told(document.plan, engine))
        texts.append((target, comments(document, "vllm-config", target, *said) + _yaml(model, flags)))
    for target, text in texts:
        write_text(target, text)


def _yaml(model: str, flags: Sequence[str]) -> str:
    lines = [f"model: {json.dumps(model)}"]
    rest = list(flags)
    while rest:
        name = rest.pop(0).removeprefix("--")
        value = rest.pop(0) if rest and not rest[0].startswith("--") else None
        lines.append(f"{name}: {'true' if value is None else _scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: str) -> str:
    """Numbers bare, everything else quoted: bare words such as `no` are something else to YAML 1.1."""
    try:
        float(value)
    except ValueError:
        return json.dumps(value)
    return value
