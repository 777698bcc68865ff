"""Training plans as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.kinds import Kind
from formulations.parallelism.training.mixed.check import check_shape
from formulations.parallelism.training.mixed.formulation import ANY_TRAINING, AnyProblem
from formulations.parallelism.training.mixed.judge import judge as judge_mixed
from formulations.parallelism.training.mixed.reading import read_any
from formulations.parallelism.training.search.check import check, check_alone
from formulations.parallelism.training.search.plans import of_document
from formulations.parallelism.training.search.pricing import joules, price, usd
from formulations.parallelism.training.search.problem import TrainProblem
from planner.cost.training.judge import evaluate_training
from planner.cost.verdict import Metric, Verdict, Violation
from planner.descriptions.training import TrainingInstance
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan

#: Of normal errors, 80 % lie within this many times their mean: 1.2816 standard deviations of 1.2533 means.
INTERVAL = 1.606


def judge(problem: AnyProblem, plan: TrainingPlan) -> Verdict:
    """The rules, then the cost model's step and memory, with an interval where the GPU and framework were measured."""
    if isinstance(problem, TrainProblem):
        return _judge(problem, plan)
    verdict = judge_mixed(problem, plan)
    metrics = [_interval(one, problem.time_mape) if one.name == "step_s" else one for one in verdict.metrics]
    return verdict.model_copy(update={"metrics": tuple(metrics)})


def _judge(problem: TrainProblem, plan: TrainingPlan) -> Verdict:
    broken = tuple(check(problem, plan))
    if broken:
        return Verdict(violations=broken, assumptions=problem.assumptions)
    one = of_document(problem, plan)
    verdict = evaluate_training(
        problem.model, problem.device, problem.network, one, problem.coefficients, problem.margin, problem.precision
    )
    priced = price(problem, one)
    metrics = [
        _interval(metric, problem.time_mape) if metric.name == "step_s" else metric for metric in verdict.metrics
    ]
    source = metrics[0].source
    metrics.append(
        Metric(name="gpu_s_per_step", value=float(priced.step_s[0]) * plan.num_gpus, unit="s", source=source)
    )
    if problem.usd_per_gpu_hour is not None:
        cost = float(usd(problem, priced.step_s, one.num_gpus)[0])
        metrics.append(Metric(name="usd_per_step", value=cost, unit="USD", source=source))
    if problem.watts is not None:
        energy = float(joules(problem, priced.step_s, priced.busy_s, one.num_gpus)[0])
        metrics.append(Metric(name="joules_per_step", value=energy, unit="J", source="modelled"))
    return verdict.model_copy(
        update={"metrics": tuple(metrics), "assumptions": (*verdict.assumptions, *problem.assumptions)}
    )


def _interval(metric: Metric, mape: float | None) -> Metric:
    if mape is None:
        return metric
    off = 1.0 + INTERVAL * mape
    return metric.model_copy(update={"low": metric.value / off, "high": metric.value * off})


def judge_alone(plan: TrainingPlan) -> Verdict:
    """Batch, stages, interleaving; model, memory and links need the instance."""
    told = "no instance given: model, memory, links and times are not judged"
    if plan.layout is None:
        return Verdict(violations=tuple(check_alone(plan)), assumptions=(told,))
    broken = [Violation(rule=rule, subject=subject, message=message) for rule, subject, message in check_shape(plan)]
    return Verdict(violations=tuple(broken), assumptions=(told,))


KIND: Kind[TrainingInstance, AnyProblem, TrainingPlan] = Kind(
    name="training",
    instance=TrainingInstance,
    document=TrainingDocument,
    formulation=ANY_TRAINING,
    read=read_any,
    judge=judge,
    judge_alone=judge_alone,
)
