"""`gpuplan import`: what others recorded or sell, as parts of instances."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.command import Command, ExitCode, Group
from cli.imports_measured import bench, hf, sglang_recorder, trtllm_statistics, vllm_eplb
from cli.imports_nodes import kubectl, openb, topo
from cli.options import JsonOption

imports = typer.Typer(
    cls=Group,
    help="Turn outside files into instances and their parts: traces, prices, kubectl output, benchmarks, configs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class SizeRule(StrEnum):
    """What stands for the requests of a bucket."""

    UPPER = "upper"
    MEAN = "mean"


class BurstRule(StrEnum):
    """What bursts are taken of."""

    TRACE = "trace"
    HOUR = "hour"


class MarketName(StrEnum):
    """How an instance is paid."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"


@imports.command(cls=Command)
def trace(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="requests as CSV (Azure, BurstGPT, or columns arrival_s, input_tokens, output_tokens) or Mooncake's "
            "JSONL; - is standard input",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="model that the requests are for")],
    grid: Annotated[
        str,
        typer.Option(
            metavar="melange|quantile|N",
            help="sizes to count by: Mélange's 10x6, as many at quantiles of the requests, or N x N of those",
        ),
    ] = "melange",
    size: Annotated[
        SizeRule, typer.Option(help="what stands for a bucket: its upper edge, or the mean of its requests")
    ] = SizeRule.UPPER,
    hourly: Annotated[
        bool | None,
        typer.Option("--hourly/--mean", help="a rate for each hour, or one; default: hourly above two hours"),
    ] = None,
    burst_quantile: Annotated[
        float, typer.Option(metavar="Q", help="share of windows that the headroom is to cover, 0 to 1")
    ] = 0.95,
    window: Annotated[str, typer.Option(metavar="S", help="length of the windows that bursts are counted in")] = "10s",
    burst_by: Annotated[
        BurstRule, typer.Option(help="one headroom for all, or a burst for each hour in the demand")
    ] = BurstRule.TRACE,
    pool_slack: Annotated[
        bool,
        typer.Option(
            "--pool-slack", help="of the bursts, leave what independent arrivals explain to the size of each pool"
        ),
    ] = False,
    scale: Annotated[float, typer.Option(metavar="X", help="times the rates of the trace")] = 1.0,
    offers: Annotated[
        str | None,
        typer.Option(
            metavar="OFFERS.yaml", help="from `import prices`: write a whole fleet instance with these offers"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="of that instance; default: the file's")] = None,
    ttft: Annotated[str | None, typer.Option(metavar="S", help="limit to write as slo, such as 2s")] = None,
    tpot: Annotated[str | None, typer.Option(metavar="S", help="limit to write as slo, such as 50ms")] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DEMAND.yaml", help="a name ending in .json is JSON; - is stdout")
    ] = "-",
    as_json: JsonOption = False,
) -> int:
    """Requests that were recorded -> `demand` by size and `headroom` for bursts.

    Requests beyond the grid get buckets of their own largest size. What was found is told in comments of the file.
    """
    from cli.importing import TraceFlags, import_trace, write

    flags = TraceFlags(
        file=file, model=model, grid=grid, size=size.value, hourly=hourly, burst_quantile=burst_quantile,
        window=window, burst_by=burst_by.value, pool_slack=pool_slack, scale=scale,
        offers=offers, name=name, ttft=ttft, tpot=tpot,
    )  # fmt: skip
    write(import_trace(flags), output, as_json)
    return ExitCode.OK


@imports.command(cls=Command)
def prices(
    file: Annotated[
        str,
        typer.Argument(
            metavar="PRICES.csv",
            help="columns gpu, gpus_per_instance, usd_per_hour, and where known provider, region, instance_type, "
            "gpu_mem_gib, market, as_of; - is standard input",
        ),
    ],
    provider: Annotated[str, typer.Option(metavar="P", help="only of this provider")] = "",
    region: Annotated[list[str] | None, typer.Option(metavar="R", help="only in these regions")] = None,
    market: Annotated[MarketName | None, typer.Option(help="only of this market")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="only these: a family (h100) or a device of the catalogue (h100_nvl)"),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave bad rows out and list them, instead of refusing the file")
    ] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OFFERS.yaml", help="a name ending in .json is JSON; - is stdout")
    ] = "-",
    as_json: JsonOption = False,
) -> int:
    """A price list -> `offers`: each instance type in a region and market, with the catalogue's name of its GPU.

    Prices are USD an hour of a whole instance. Of several dates the newest counts.
    """
    from cli.importing import import_prices, write
    from planner.readers.price_tables import PriceFilter

    only = PriceFilter(provider, tuple(region or ()), None if market is None else market.value, tuple(gpu or ()))
    write(import_prices(file, only, skip_bad), output, as_json)
    return ExitCode.OK


for command in (kubectl, openb, topo, hf, bench, sglang_recorder, vllm_eplb, trtllm_statistics):
    imports.command(cls=Command)(command)
