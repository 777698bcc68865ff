"""What `gpuplan import bench`, `hf` and the expert statistics write: calibration rows, configs, expert loads."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.command import tell
from cli.importing import Imported
from cli.render import printable
from planner import catalog
from planner.errors import DescriptionError, Finding, MissingExtraError, OptionError
from planner.files import read_text, write_text
from planner.model.spec import ModelSpec
from planner.readers.bench_results import BenchRun, read_bench_results
from planner.readers.expert_loads import read_expert_load
from planner.readers.expert_statistics import META, read_trtllm_statistics, read_vllm_statistics
from planner.readers.hf_config import MAX_CONFIG_BYTES, read_model
from planner.readers.serving_rows import BACKEND_NAMES, SIZES
from planner.workload import ExpertLoad

#: Columns of a calibration row, as `planner.readers.serving_rows` reads them; source is told and not read.
COLUMNS = (
    *("model", "system", "backend", "precision", "gemm_quant", "moe_quant", "kv_quant"),
    *("tp", "pp", "attention_dp", "moe_tp", "moe_ep", "speculative"),
    *("isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "source"),
)
QUANTIZATION_FILE = "hf_quant_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFlags:
    """What the client of a benchmark does not know; cells by column, where given."""

    model: str | None
    system: str | None
    backend: str | None
    cells: Mapping[str, str]


def import_bench(files: Sequence[str], flags: BenchFlags, output: str) -> None:
    """Rows of all runs of all files, written as CSV. DescriptionError with every mistake of every file."""
    findings: list[Finding] = []
    runs: list[BenchRun] = []
    for file in files:
        try:
            runs += read_bench_results(file)
        except DescriptionError as error:
            findings += error.findings
    rows = [_row(run, flags, findings) for run in runs]
    if findings:
        raise DescriptionError(findings)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output, out.getvalue())
    for run in runs:
        for note in run.notes:
            tell(printable(f"{run.place}: {note}"))
    if output != "-":
        tell(f"{len(rows)} runs written; next: gpuplan calibrate {printable(output)} -o efficiency.yaml")


def _row(run: BenchRun, flags: BenchFlags, findings: list[Finding]) -> dict[str, str]:
    """One run's cells: flags over what the result says. Notes what is still missing, or no device, or no size."""
    said = {**run.said, **flags.cells}
    system = flags.system or said.get("system", "")
    backend = (flags.backend or "").lower()
    model = flags.model or run.model
    for flag, value in (("--model", model), ("--system", system), ("--backend", backend)):
        if not value:
            findings.append(Finding(run.place, f"does not say {flag.removeprefix('--')}; give {flag}"))
    if system:
        try:
            catalog.device(system)
        except OptionError as error:
            findings.append(Finding(run.place, f"system: {error}"))
    if backend and backend not in BACKEND_NAMES:
        findings.append(Finding(run.place, f"backend {backend[:40]!r} is none of {', '.join(BACKEND_NAMES)}"))
    for size in SIZES:
        text = said.get(size, "1")
        if not (text.isascii() and text.isdecimal() and 0 < len(text) < 6 and int(text) > 0):
            findings.append(Finding(run.place, f"{size} is {text[:40]!r}, not a whole number from 1"))
    times = {"ttft_ms": run.ttft_ms, "tpot_ms": run.tpot_ms}
    return {
        **{column: said.get(column, "") for column in COLUMNS},
        "model": model,
        "system": system,
        "backend": backend,
        "isl": str(run.input_tokens),
        "osl": str(run.output_tokens),
        "concurrency": str(run.concurrency),
        **{name: "" if math.isnan(value) else f"{value:.6g}" for name, value in times.items()},
        "source": run.place,
    }


def import_expert_load(read: Callable[[], ExpertLoad]) -> Imported:
    """Counts of each layer and expert, in the form that `experts` instances and SGLang read."""
    load = read()
    layers, experts = load.counts.shape
    whole = bool((load.counts == load.counts.round()).all() and load.counts.max() < 2**53)
    rows = [[int(one) if whole else float(f"{one:.9g}") for one in row] for row in load.counts.tolist()]
    dense = int((load.counts.sum(axis=1) == 0).sum())
    told = [f"{layers} layers x {experts} experts, {load.counts.sum():.6g} tokens routed"]
    told += [f"{dense} layers without counts: dense, or not recorded"] if dense else []
    routed = load.counts[load.counts.sum(axis=1) > 0]
    hottest = (routed.max(axis=1) / routed.mean(axis=1)).max()
    told.append(f"the busiest expert of a layer has up to {hottest:.3g} times the layer's mean")
    return Imported({"logical_count": rows}, told)


def sglang_load(file: str) -> Callable[[], ExpertLoad]:
    """A recorder's dump, .pt or .json; also .npy and .csv."""
    return lambda: read_expert_load(Path(file), name=Path(file).stem)


def trtllm_load(folder: str) -> Callable[[], ExpertLoad]:
    """A folder of statistics."""
    if not Path(folder).is_dir():
        raise DescriptionError.single(folder, f"is no folder with {META} and rank*.safetensors")
    return lambda: read_trtllm_statistics(Path(folder), name=Path(folder).name)


def vllm_load(file: str, first_layer: int) -> Callable[[], ExpertLoad]:
    """JSON lines of eplb_load_stats."""
    if not 0 <= first_layer <= 1000:
        raise OptionError(f"--first-layer is {first_layer}, but must be from 0 to 1000")
    return lambda: read_vllm_statistics(file, name=Path(file).stem, first_layer=first_layer)


def import_hf(source: str, hub: bool, revision: str | None, output: str) -> ModelSpec:
    """A model's config, checked, and its quantisation file beside it, where other commands find both.

    source : config.json, a folder with one, or with `hub` an id. Raises DescriptionError with every problem of the
    config, MissingExtraError without huggingface_hub, OptionError for an id that the hub does not give.
    """
    path = _from_hub(source, revision) if hub else Path(source)
    if not hub and source != "-" and not path.exists():
        hint = "; --hub asks Hugging Face for a model of that id" if source.count("/") == 1 else ""
        raise DescriptionError.single(source, f"is no config.json, nor a folder with one{hint}")
    config = path / "config.json" if source != "-" and path.is_dir() else path
    quantization = config.with_name(QUANTIZATION_FILE) if config.name == "config.json" else None
    text = read_text("-" if source == "-" else config, MAX_CONFIG_BYTES)
    name = source if hub else _name_of(source, config)
    # What is written is what was read: the copy is checked, in the folder where it will be.
    texts = {"": text}
    if quantization is not None and quantization.is_file():
        texts[".hf_quant_config"] = read_text(quantization, MAX_CONFIG_BYTES)
    spec = _checked(texts, name, source)
    if output == "-":
        if len(texts) > 1:
            raise OptionError(f"the model has {QUANTIZATION_FILE} beside its config: two files need -o FILE.json")
        write_text("-", text)
        return spec
    target = Path(output)
    if target.suffix != ".json":
        raise OptionError(f"-o {output} must end in .json, as files of models do")
    for middle, one in texts.items():
        write_text(target.with_name(f"{target.stem}{middle}.json"), one)
    return spec


def _name_of(source: str, config: Path) -> str:
    """`org--name.json` is org/name; a config.json is called after its folder."""
    if source == "-":
        return "model"
    return config.resolve().parent.name if config.name == "config.json" else config.stem.replace("--", "/", 1)


def _checked(texts: Mapping[str, str], name: str, source: str) -> ModelSpec:
    """The model that the texts describe; mistakes are told at the file that was given."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for middle, text in texts.items():
            (Path(folder) / f"model{middle}.json").write_text(text, encoding="utf-8")
        try:
            return read_model(Path(folder) / "model.json", name=name)
        except DescriptionError as error:
            raise DescriptionError(
                [
                    Finding(
                        f"{source} {QUANTIZATION_FILE}" if "hf_quant" in Path(one.path).name else source,
                        one.message,
                        one.line,
                        one.column,
                    )
                    for one in error.findings
                ]
            ) from None


def _from_hub(model_id: str, revision: str | None) -> Path:
    """The folder where huggingface_hub keeps the model's config, and its quantisation file where it has one."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise MissingExtraError("--hub needs huggingface_hub: pip install 'gpuplan[hf]'") from None
    try:
        config = Path(hf_hub_download(model_id, "config.json", revision=revision))
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(model_id, QUANTIZATION_FILE, revision=revision)
    except Exception as error:
        # Of many libraries and kinds: no such model, no leave, no network.
        told = str(error).strip().splitlines()
        raise OptionError(
            f"the hub gives no config of {model_id[:80]}: {told[0][:200] if told else repr(error)}"
        ) from None
    return config.parent


def told_of(spec: ModelSpec) -> list[str]:
    """A model in three lines."""
    lines = [
        f"{spec.name}: {spec.model_type or 'no model_type'}, {spec.total_params / 1e9:.4g} B parameters, "
        f"{spec.active_params / 1e9:.4g} B active, {len(spec.layers)} layers",
        f"weights {spec.weight_bytes / 1e9:.4g} GB, cache {spec.kv_bytes_per_token():,.0f} bytes a token (16 bit)",
    ]
    return [*lines, *(f"assumed: {one}" for one in spec.assumptions)]
