"""Results of serving benchmarks -> measured runs, for `gpuplan calibrate`.

Known by their keys: JSON of `vllm bench serve --save-result` and of SGLang's bench_serving (one object, a list, or one
a line), GenAI-Perf's and AIPerf's profile export, GuideLLM's benchmarks.json. Means are taken: TTFT, and the time of a
token after the first (TPOT or inter-token latency).

Sources: vllm/benchmarks/serve.py and sglang's bench_serving (keys of the result), genai-perf's JSON exporter and its
tests, guidellm's schemas (GenerativeBenchmarksReport), each read in its repository. Of AIPerf only the concurrency of
its `phases` was seen, in a third party's adapter. How many requests ran at once is what the client was told; where it
was told a rate, it follows from the measured latency (Little's law), and a note says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import DescriptionError, Finding
from planner.files import read_text
from planner.readers.serving_rows import MAX_TOKENS, WORKER_COLUMNS

#: Results with every request's times and texts are large; without them a few kB.
MAX_BYTES = 256 * 2**20
MAX_RUNS, MAX_FINDINGS = 10_000, 50
#: Units of times as GenAI-Perf writes them, in ms.
UNITS_MS: Mapping[str, float] = {"ms": 1.0, "us": 1e-3, "ns": 1e-6, "s": 1e3, "sec": 1e3}
#: Columns that `--metadata KEY=VALUE` of vLLM may give: what the client cannot know of the server.
SAID = tuple(column for column in WORKER_COLUMNS if column not in ("model", "backend"))


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One measured run. model : as the client named it, empty where it did not. said : cells of worker columns.

    place : file and run; notes : what was inferred. Times are means in ms, NaN where the file has none.
    """

    place: str
    model: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    said: Mapping[str, str]
    notes: tuple[str, ...] = ()


class _Wrong(Exception):
    """What is wrong with one run."""


def read_bench_results(path: str | Path) -> tuple[BenchRun, ...]:
    """All runs of a file ('-' is standard input). Raises DescriptionError with what is wrong with each."""
    place = "<stdin>" if str(path) == "-" else str(path)
    text = read_text(path, MAX_BYTES)
    runs: list[BenchRun] = []
    findings: list[Finding] = []
    for line, label, value in _documents(text, place):
        try:
            for name, run in _runs(value):
                runs.append(run(f"{place}{label}{name}"))
        except _Wrong as wrong:
            findings.append(Finding(place, f"{label.strip('#: ')}: {wrong}" if label else str(wrong), line))
        if len(findings) >= MAX_FINDINGS or len(runs) > MAX_RUNS:
            findings.append(Finding(place, f"more than {MAX_RUNS} runs, or of these mistakes"))
            break
    if findings:
        raise DescriptionError(findings)
    if not runs:
        raise DescriptionError.single(place, "holds no run")
    return tuple(runs)


def _documents(text: str, place: str) -> Iterator[tuple[int | None, str, Any]]:
    """Line, label and value of every JSON object: one, a list of them, or one a line."""
    try:
        value = _parsed(text)
    except ValueError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
            raise _not_json(place, whole) from None
        for number, line in lines:
            try:
                found = _parsed(line)
            except ValueError as error:
                # A file of many lines that is one broken object is told as that.
                raise _not_json(place, whole if number == lines[0][0] else error, number) from None
            yield number, f"#{number}", found
        return
    if isinstance(value, list):
        yield from ((None, f"#{index}", one) for index, one in enumerate(value, start=1))
    else:
        yield None, "", value


def _parsed(text: str) -> Any:
    """JSON; NaN and Infinity, which clients write for a request rate, are read and refused where they matter."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _not_json(place: str, error: ValueError, line: int | None = None) -> DescriptionError:
    if isinstance(error, json.JSONDecodeError):
        at = (error.lineno, error.colno) if line is None else (line, error.colno)
        return DescriptionError.single(place, f"not valid JSON: {error.msg}", *at)
    return DescriptionError.single(place, f"not usable JSON: {str(error)[:200]}")


Made = Callable[[str], BenchRun]


def _runs(value: Any) -> Iterator[tuple[str, Made]]:
    """Each run of a document, by what tells its format apart."""
    if not isinstance(value, dict):
        raise _Wrong("needs an object with the results of a benchmark")
    if "benchmarks" in value:
        yield from _guidellm(value)
    elif isinstance(value.get("time_to_first_token"), dict) or isinstance(value.get("request_latency"), dict):
        yield "", _genai_perf(value)
    elif "total_input_tokens" in value and "completed" in value:
        yield "", _bench_serve(value)
    else:
        raise _Wrong(
            "is of no format that is known: vLLM or SGLang (total_input_tokens, completed), GenAI-Perf or AIPerf"
            " (time_to_first_token), GuideLLM (benchmarks)"
        )


def _bench_serve(value: dict[str, Any]) -> Made:
    """vLLM's `bench serve`, and SGLang's bench_serving, which has the same keys."""
    completed = _number(value, "completed")
    if completed < 1:
        raise _Wrong("completed no request")
    notes = []
    failed = value.get("failed", 0)
    if isinstance(failed, int) and failed > 0:
        notes.append(f"{failed} requests failed beside {completed:g} that did not: the load was another")
    inputs, outputs = (_number(value, f"total_{what}_tokens") / completed for what in ("input", "output"))
    ttft, tpot = (_time(value, f"mean_{what}_ms") for what in ("ttft", "tpot"))
    concurrency = value.get("max_concurrency")
    if concurrency is None:
        whole_ms = _time(value, "mean_e2el_ms", "mean_e2e_latency_ms")
        if math.isnan(whole_ms):
            whole_ms = ttft + tpot * (outputs - 1)
        concurrency = _little(_number(value, "request_throughput"), whole_ms, notes)
    said = {key: str(value[key]).strip() for key in SAID if isinstance(value.get(key), str | int)}
    model = value.get("model_id", "")
    return _made(model, inputs, outputs, concurrency, ttft, tpot, said, notes)


def _genai_perf(value: dict[str, Any]) -> Made:
    """Statistics by metric, each with its unit; how it was run is in input_config."""

    def average(metric: str) -> float:
        return _number(_object(value, metric), "avg", metric)

    def time_ms(metric: str) -> float:
        if metric not in value:
            return math.nan
        unit = _object(value, metric).get("unit")
        if not isinstance(unit, str) or unit not in UNITS_MS:
            raise _Wrong(f"{metric}.unit is {str(unit)[:20]!r}, not one of {', '.join(UNITS_MS)}")
        return average(metric) * UNITS_MS[unit]

    notes: list[str] = []
    config = value.get("input_config")
    config = config if isinstance(config, dict) else {}
    concurrency = _told_concurrency(config)
    if concurrency is None:
        concurrency = _little(average("request_throughput"), time_ms("request_latency"), notes)
    names = config.get("model") or config.get("model_names")
    if names is None and isinstance(config.get("models"), dict):
        items = config["models"].get("items")
        names = [one.get("name") for one in items if isinstance(one, dict)] if isinstance(items, list) else None
    model = names[0] if isinstance(names, list) and names else names
    return _made(
        model or "",
        average("input_sequence_length"),
        average("output_sequence_length"),
        concurrency,
        time_ms("time_to_first_token"),
        time_ms("inter_token_latency"),
        {},
        notes,
    )


def _told_concurrency(config: dict[str, Any]) -> Any:
    """Of a run by concurrency; None for one by rate."""
    if config.get("request_rate") is not None:
        return None
    if config.get("concurrency") is not None:
        return config["concurrency"]
    phases = config.get("phases")
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict) and phase.get("name") == "profiling":
            return phase.get("concurrency")
    return None


def _guidellm(value: dict[str, Any]) -> Iterator[tuple[str, Made]]:
    """One run a benchmark of the report; the successful requests count."""
    benchmarks = value["benchmarks"]
    if not isinstance(benchmarks, list):
        raise _Wrong("benchmarks must be a list")
    args = value.get("args")
    model = args.get("model") if isinstance(args, dict) else None
    for index, one in enumerate(benchmarks):
        if not isinstance(one, dict):
            raise _Wrong(f"benchmarks.{index} must be an object")
        metrics = _object(one, "metrics", f"benchmarks.{index}")

        def mean(metric: str, metrics: dict[str, Any] = metrics, index: int = index) -> float:
            where = f"benchmarks.{index}.metrics.{metric}"
            return _number(_object(_object(metrics, metric, where), "successful", where), "mean", where)

        notes: list[str] = []
        config = one.get("config")
        strategy = config.get("strategy") if isinstance(config, dict) else None
        streams = strategy.get("streams") if isinstance(strategy, dict) else None
        if streams is None:
            streams = max(1, round(mean("request_concurrency")))
            notes.append(f"{streams} requests at once, the mean that was measured")
        yield (
            f".benchmarks.{index}",
            _made(
                model or "",
                mean("prompt_token_count"),
                mean("output_token_count"),
                streams,
                mean("time_to_first_token_ms"),
                mean("inter_token_latency_ms"),
                {},
                notes,
            ),
        )


def _made(
    model: Any,
    inputs: float,
    outputs: float,
    concurrency: Any,
    ttft_ms: float,
    tpot_ms: float,
    said: Mapping[str, str],
    notes: list[str],
) -> Made:
    """The run, once its place is known. Raises _Wrong for numbers that no run has."""
    if not isinstance(model, str):
        raise _Wrong(f"the model must be a text, got {str(model)[:40]!r}")
    for what, count in (("input", inputs), ("output", outputs)):
        if not 1 <= count <= MAX_TOKENS:
            raise _Wrong(f"{count:g} {what} tokens a request are none that can be")
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_TOKENS:
        raise _Wrong(f"concurrency must be a whole number from 1, got {str(concurrency)[:40]!r}")
    # One token has no time after the first, which clients write as 0.
    tpot_ms = math.nan if outputs < 1.5 or tpot_ms == 0 else tpot_ms
    if math.isnan(ttft_ms) and math.isnan(tpot_ms):
        raise _Wrong("has neither a time to first token nor one per token: was it streamed?")
    return lambda place: BenchRun(
        place, model, round(inputs), round(outputs), concurrency, ttft_ms, tpot_ms, said, tuple(notes)
    )


def _little(rate_per_s: float, latency_ms: float, notes: list[str]) -> int:
    """Requests at once of a run by rate."""
    at_once = rate_per_s * latency_ms / 1e3
    if not 0 < at_once < MAX_TOKENS:
        raise _Wrong("does not say how many requests ran at once, nor their rate and latency")
    found = max(1, round(at_once))
    notes.append(f"{found} requests at once, from {rate_per_s:.4g} a second that took {latency_ms:.4g} ms each")
    return found


def _time(value: dict[str, Any], *keys: str) -> float:
    """A time in ms; NaN where there is none of these keys."""
    key = next((key for key in keys if value.get(key) is not None), None)
    return math.nan if key is None else _number(value, key)


def _number(value: dict[str, Any], key: str, where: str = "") -> float:
    found = value.get(key)
    name = f"{where}.{key}".lstrip(".")
    if found is None:
        raise _Wrong(f"{name} is required")
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e15:
        raise _Wrong(f"{name} must be a number from 0, got {str(found)[:40]!r}")
    return float(found)


def _object(value: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise _Wrong(f"{where or key} needs an object {key}, got {str(found)[:40]!r}")
    return found
