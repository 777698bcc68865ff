"""`gpuplan import bench`, `hf`, `sglang-recorder`, `vllm-eplb` and `trtllm-statistics`: measurements and models."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.command import ExitCode, tell

LoadOutput = Annotated[
    str, typer.Option("--output", "-o", metavar="LOAD.json", help="file for `loads:` of an instance; - is stdout")
]
WORKER = "The server, where the result does not say"


def _cell(help: str, metavar: str = "N") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar=metavar, help=help, rich_help_panel=WORKER)
    return option


def bench(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT.json...",
            help="results of `vllm bench serve --save-result`, SGLang's bench_serving, GenAI-Perf or AIPerf "
            "(profile_export_*.json), GuideLLM (benchmarks.json); - is standard input",
        ),
    ],
    model: Annotated[str | None, _cell("Hugging Face id; default: what the client asked for", "NAME")] = None,
    system: Annotated[str | None, _cell("GPU, by its catalogue name", "NAME")] = None,
    backend: Annotated[str | None, _cell("vllm, sglang or trtllm", "NAME")] = None,
    precision: Annotated[str | None, _cell("format of the weights; default: the checkpoint's", "NAME")] = None,
    kv_quant: Annotated[str | None, _cell("format of the cache; default: the engine's", "NAME")] = None,
    tp: Annotated[int | None, _cell("tensor parallel size; default: 1")] = None,
    pp: Annotated[int | None, _cell("pipeline stages; default: 1")] = None,
    attention_dp: Annotated[int | None, _cell("attention ranks; default: 1")] = None,
    moe_tp: Annotated[int | None, _cell("GPUs that share each expert")] = None,
    moe_ep: Annotated[int | None, _cell("GPUs that the experts are shared out to")] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUNS.csv", help="rows for `gpuplan calibrate`; - is stdout")
    ] = "-",
) -> int:
    """Benchmark results -> rows for `gpuplan calibrate` and `estimate --rows`, one a run.

    Metadata of vLLM's client (--metadata tp=4 system=h100_sxm) is taken; flags come before it. A run by rate has the
    number of requests at once that Little's law gives, which is told.
    """
    from cli.importing_measured import BenchFlags, import_bench

    given = {
        "precision": precision, "kv_quant": kv_quant, "tp": tp, "pp": pp, "attention_dp": attention_dp,
        "moe_tp": moe_tp, "moe_ep": moe_ep,
    }  # fmt: skip
    cells = {column: str(value) for column, value in given.items() if value is not None}
    import_bench(files, BenchFlags(model=model, system=system, backend=backend, cells=cells), output)
    return ExitCode.OK


def hf(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="config.json, a folder with one, or with --hub an id; - is stdin")
    ],
    hub: Annotated[bool, typer.Option("--hub", help="SOURCE is an id on Hugging Face (needs gpuplan[hf])")] = False,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="with --hub: branch, tag or commit")] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="ORG--NAME.json", help="where other commands take it from; - is stdout"),
    ] = "-",
) -> int:
    """A Hugging Face config, read and counted, as a file that `model:` and --models take.

    A hf_quant_config.json beside it comes along. Nothing else of the model is read; weights are never downloaded.
    """
    from cli.importing_measured import import_hf, told_of
    from cli.render import printable
    from planner.errors import OptionError

    if revision is not None and not hub:
        raise OptionError("--revision is for --hub")
    for line in told_of(import_hf(source, hub, revision, output)):
        tell(printable(line))
    return ExitCode.OK


def sglang_recorder(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="dump of SGLang's expert distribution recorder, .pt or .json")
    ],
    output: LoadOutput = "-",
) -> int:
    """SGLang's recorded expert counts -> one count a layer and expert. Physical counts become logical ones."""
    from cli.importing import write
    from cli.importing_measured import import_expert_load, sglang_load

    # A load is JSON whatever its name, which is what instances and SGLang read.
    write(import_expert_load(sglang_load(file)), output, True)
    return ExitCode.OK


def vllm_eplb(
    file: Annotated[str, typer.Argument(metavar="STATS.jsonl", help="records eplb_load_stats; - is standard input")],
    first_layer: Annotated[
        int, typer.Option(metavar="N", help="dense layers before the first of the file, as rows of zeros")
    ] = 0,
    output: LoadOutput = "-",
) -> int:
    """vLLM's EPLB load records (pull request 41141, version 1; not in 0.33 itself) -> one count a layer and expert."""
    from cli.importing import write
    from cli.importing_measured import import_expert_load, vllm_load

    write(import_expert_load(vllm_load(file, first_layer)), output, True)
    return ExitCode.OK


def trtllm_statistics(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="meta_info.json and rank*.safetensors")],
    output: LoadOutput = "-",
) -> int:
    """TensorRT-LLM's expert statistics -> one count a layer and expert, ranks and iterations added up."""
    from cli.importing import write
    from cli.importing_measured import import_expert_load, trtllm_load

    write(import_expert_load(trtllm_load(folder)), output, True)
    return ExitCode.OK
