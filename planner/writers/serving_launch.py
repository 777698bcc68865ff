"""A serving plan as one shell script: a launch command for each kind of worker, and the benchmark that tests the plan.

`bash SCRIPT WORKER [FLAGS...]` starts one worker; what is said after its name goes to the engine. The workers' GPUs are
those of CUDA_VISIBLE_DEVICES. A worker of several nodes is started on each, with NODE_RANK and MASTER_ADDR.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.cost.serving.memory import DEFAULT_MAX_NUM_BATCHED_TOKENS
from planner.cost.serving.worker import Backend
from planner.engines import unsupported
from planner.errors import ExportError
from planner.files import write_text
from planner.parallel_plan import ParallelPlan, Workers
from planner.plan import ParallelDocument
from planner.units import format_seconds
from planner.writers.common import comments

#: Requests of the benchmark, for each that runs at once: what is warming up and ending is then a small part.
ROUNDS = 10


class Variable(str):
    """Shell text that stays as it is; everything else is quoted."""


MODEL = Variable('"$MODEL"')
NODE_RANK, MASTER_ADDR = Variable('"$NODE_RANK"'), Variable('"$MASTER_ADDR"')


@dataclass(frozen=True, slots=True)
class Launch:
    """One kind of worker to start. place : its number in the plan; nodes : that it spans; node_gpus : of it on each."""

    plan: ParallelPlan
    worker: Workers
    place: int
    nodes: int
    node_gpus: int

    @property
    def most_tokens(self) -> int:
        """Of a request that comes to it in any hour, prompt and answer."""
        routes = [*self.plan.routing, *(route for period in self.plan.periods for route in period.routing)]
        sizes = [one.input_tokens + one.output_tokens for one in routes if one.worker == self.worker.name]
        return max(sizes, default=(self.plan.input_tokens or 0) + (self.plan.output_tokens or 0))

    @property
    def step_tokens(self) -> int:
        """Most tokens of a step of an attention rank."""
        return self.worker.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS

    @property
    def rank_batch(self) -> int | None:
        """Sequences of one attention rank; None where the engine may choose: unknown, or a prefill worker."""
        batch = self.worker.max_batch_size
        if batch is None or self.worker.role == "prefill":
            return None
        return -(-batch // self.worker.data_parallel_size)


@dataclass(frozen=True, slots=True)
class Engine:
    """What differs between engines.

    quantizes : flags that convert the weights while they are loaded, by format. body : the shell lines that start a
    worker; it raises ExportError for sizes that the engine cannot express. pairs : what prefill and decode workers need
    besides. benchmark : command without its load. rate, at_once : flags of the load.
    """

    to: Backend
    title: str
    quantizes: Mapping[str, Sequence[str]]
    body: Callable[[Launch], Sequence[str]]
    pairs: Sequence[str]
    benchmark: Sequence[str]


def write_script(document: ParallelDocument, path: str, engine: Engine) -> None:
    """Write the script to `path`, or into the folder `path`. ExportError for what the engine cannot run."""
    plan = document.plan
    assert plan is not None
    model, started = default_model(plan, engine), launches(plan, engine)
    if path != "-" and Path(path).is_dir():
        path = str(Path(path) / f"serve_{engine.to}.sh")
    name = "SCRIPT" if path == "-" else shlex.quote(Path(path).name)
    many = any(launch.nodes > 1 for launch, _ in started)
    lines = [
        f"start one worker: bash {name} WORKER [FLAGS of {engine.title}, such as a port]",
        *(f"  {_summary(launch)}" for launch, _ in started),
        *(["on every node of a larger worker, set NODE_RANK=0, 1, ... and MASTER_ADDR"] if many else []),
        *told(plan, engine),
    ]
    branches = [
        f"  {shlex.quote(launch.worker.name)})\n" + "".join(f"    {line}\n" for line in body) + "    ;;\n"
        for launch, body in started
    ]
    usage = shlex.quote("workers: " + " ".join(shlex.quote(worker.name) for worker in plan.workers))
    text = (
        "#!/usr/bin/env bash\n"
        + comments(document, engine.to, path, *lines)
        + f"set -euo pipefail\nMODEL={model}\nworker=${{1-}}\nshift || true\n"
        + 'case "$worker" in\n'
        + "".join(branches)
        + f"  *)\n    echo {usage} >&2\n    exit 2\n    ;;\nesac\n"
    )
    write_text(path, text)


def launches(plan: ParallelPlan, engine: Engine) -> list[tuple[Launch, Sequence[str]]]:
    """Every kind of worker with the shell lines that start it; ExportError for what the engine cannot run."""
    found = [_launch(plan, engine, worker, place) for place, worker in enumerate(plan.workers, start=1)]
    return [(launch, engine.body(launch)) for launch in found]


def told(plan: ParallelPlan, engine: Engine) -> list[str]:
    """What goes with the workers: how requests reach them, and the load that would prove the plan wrong."""
    pairs = {"prefill", "decode"} & {worker.role for worker in plan.workers}
    return [*(engine.pairs if pairs else []), *_shares(plan), *_test(plan, engine)]


def argv_lines(command: Iterable[str], more: Iterable[Sequence[str]]) -> list[str]:
    """`exec` of a command, one flag with its value a line, and the script's own arguments at the end."""
    rows = [["exec", *command], *more, [Variable('"$@"')]]
    last = len(rows) - 1
    return [
        ("" if row is rows[0] else "  ") + " ".join(map(_quoted, row)) + ("" if index == last else " \\")
        for index, row in enumerate(rows)
    ]


def _quoted(word: str) -> str:
    return word if isinstance(word, Variable) else shlex.quote(word)


def sized(flag: str, size: int) -> list[list[str]]:
    """A flag for a size other than 1."""
    return [[flag, str(size)]] if size > 1 else []


def quantized(engine: Engine, plan: ParallelPlan) -> list[list[str]]:
    """The flags that convert the weights, where the engine can."""
    flags = engine.quantizes.get(plan.quantization or "")
    return [list(flags)] if flags else []


def default_model(plan: ParallelPlan, engine: Engine) -> str:
    """The shell value of MODEL: overridable; without a default where the checkpoint has to be converted first.

    A checkpoint that the plan names is taken as it is: in the planned format where the engine cannot convert.
    """
    if plan.model is None and plan.checkpoint is None:
        raise ExportError("the plan names no model; plan again with one (`model:`, --model)")
    if plan.input_tokens is None or plan.output_tokens is None:
        raise ExportError("the plan does not say its requests' sizes; plan again")
    if plan.backend is not None and plan.backend != engine.to:
        raise ExportError(f"the plan was made for {plan.backend}, not {engine.to}; plan again with backend {engine.to}")
    if plan.checkpoint is not None:
        return f"${{MODEL:-{shlex.quote(plan.checkpoint)}}}"
    if plan.quantization is not None and plan.quantization not in engine.quantizes:
        wanted = f"set MODEL to a checkpoint of {plan.model} in {plan.quantization}"
        return f"${{MODEL:?{shlex.quote(wanted)}}}"
    config = Path(str(plan.model))
    if config.suffix == ".json" and config.name != "config.json":
        return f"${{MODEL:?{shlex.quote(f'set MODEL to the weights that {plan.model} describes')}}}"
    return f"${{MODEL:-{shlex.quote(str(config.parent) if config.suffix == '.json' else str(plan.model))}}}"


def _launch(plan: ParallelPlan, engine: Engine, worker: Workers, place: int) -> Launch:
    sizes = worker.tensor_parallel_size * worker.pipeline_parallel_size * worker.data_parallel_size
    sizes *= worker.context_parallel_size
    if sizes != worker.num_gpus:
        raise ExportError(
            f"{worker.name}: tp x pp x dp x cp is {sizes}, but it has {worker.num_gpus} GPUs;"
            " a table of candidates needs the columns tp, pp, dp, cp, ep for launch commands"
        )
    reason = unsupported(engine.to, worker)
    if reason is not None:
        raise ExportError(f"{worker.name}: {reason}")
    node = plan.gpus_per_node.get(worker.device, worker.num_gpus)
    nodes = -(-worker.num_gpus // node)
    if worker.num_gpus % nodes:
        raise ExportError(f"{worker.name}: {worker.num_gpus} GPUs do not share {nodes} nodes of {node} evenly")
    return Launch(plan, worker, place, nodes, worker.num_gpus // nodes)


def _summary(launch: Launch) -> str:
    worker = launch.worker
    where = "" if launch.nodes == 1 else f" on {launch.nodes} nodes"
    return f"{worker.count} x {shlex.quote(worker.name)}: {worker.role}, {worker.num_gpus} x {worker.device}{where}"


def _shares(plan: ParallelPlan) -> list[str]:
    """Which requests go where: of every size, or if there are mixed workers beside pairs."""
    if plan.routing:
        return [_routes(plan, size) for size in _sizes(plan)]
    mixed = sum(one.requests_per_s * one.count for one in plan.workers if one.role == "both")
    if not 0 < mixed < plan.requests_per_s:
        return []
    share = mixed / plan.requests_per_s
    return [f"requests: {share:.1%} to the mixed workers, {1 - share:.1%} to prefill and then decode workers"]


def _sizes(plan: ParallelPlan) -> list[tuple[int, int]]:
    return list(dict.fromkeys((one.input_tokens, one.output_tokens) for one in plan.routing))


def _routes(plan: ParallelPlan, size: tuple[int, int]) -> str:
    """Shares of one size's requests; those that a prefill worker begins end at a decode worker."""
    roles = {worker.name: worker.role for worker in plan.workers}
    routes = [one for one in plan.routing if (one.input_tokens, one.output_tokens) == size and one.requests_per_s > 0]
    served = sum(one.requests_per_s for one in routes if roles[one.worker] != "decode")
    shares = (f"{one.requests_per_s / served:.1%} to {one.worker} ({roles[one.worker]})" for one in routes)
    return f"requests of {size[0]}/{size[1]} tokens: {', '.join(shares)}"


def _test(plan: ParallelPlan, engine: Engine) -> list[str]:
    """The load that the plan was made for, and what would prove it wrong."""
    if len(_sizes(plan)) > 1:
        return ["test of the plan: replay a trace with its sizes; a benchmark's random prompts are of one size"]
    asked = plan.output_tokens_per_s / (plan.output_tokens or 1)
    batches = [one.count * (one.max_batch_size or 0) for one in plan.workers if one.role != "prefill"]
    closed = all(batches) and all(one.role == "both" for one in plan.workers) and asked >= plan.requests_per_s
    at_once = sum(batches)
    # Arrivals in a closed loop where that is what was predicted, else at the rate.
    load = ["--max-concurrency", str(at_once)] if closed else ["--request-rate", f"{asked:.4g}"]
    number = ROUNDS * (at_once or max(1, round(60 * asked)))
    sizes = ["--random-input-len", str(plan.input_tokens), "--random-output-len", str(plan.output_tokens)]
    argv = [*engine.benchmark, *sizes, "--num-prompts", str(number), *load]
    limits = [f"{plan.output_tokens_per_s:.4g} output tokens/s"]
    limits += [f"mean TTFT {format_seconds(plan.ttft_s)}"] if plan.ttft_s is not None else []
    limits += [f"mean TPOT {format_seconds(plan.tpot_s)}"] if plan.tpot_s is not None else []
    drafts = any(worker.draft_tokens for worker in plan.workers)
    return [
        f"test of the plan, behind its router (predicted: {', '.join(limits)}):",
        "  " + " ".join(map(_quoted, argv)),
        *(["  random words are no text: drafts are right less often; use prompts of your own"] if drafts else []),
    ]
