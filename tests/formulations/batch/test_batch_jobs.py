"""From folders, lists and sweeps to jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from batch_cases import write_fleet
from hypothesis import given
from hypothesis import strategies as st

from formulations.batch.jobs import Job, Settings, loc_of, read_jobs, swept_source
from formulations.batch.run import Shard
from planner.errors import DescriptionError, OptionError


@pytest.fixture
def night(tmp_path: Path) -> Path:
    (tmp_path / "night" / "east").mkdir(parents=True)
    write_fleet(tmp_path / "night", "b")
    write_fleet(tmp_path / "night", "a")
    write_fleet(tmp_path / "night" / "east", "c")
    (tmp_path / "night" / "a.best.json").write_text("{}")
    (tmp_path / "night" / "notes.md").write_text("none of ours")
    return tmp_path / "night"


def test_folder_gives_its_instances_by_name_but_not_what_we_wrote_beside_them(night: Path) -> None:
    assert [job.name for job in read_jobs(str(night))] == ["a.json", "b.json", "east/c.json"]


def test_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="holds no instance"):
        read_jobs(str(tmp_path))


def test_one_instance_is_one_job(night: Path) -> None:
    assert [job.name for job in read_jobs(str(night / "a.json"))] == ["a.json"]


def test_list_of_files_patterns_and_sweeps(night: Path) -> None:
    """Two files by a pattern, of which one is also listed; 2 values x 3 points of the third."""
    (night.parent / "list.yaml").write_text(
        "jobs:\n"
        "- night/a.json\n"
        "- instance: night/?.json\n"
        "- instance: night/east/c.json\n"
        "  sweep: {headroom: [0, 0.1], demand.0.rate_per_s: {first: 1, last: 100, points: 3, scale: log}}\n"
    )
    jobs = read_jobs(str(night.parent / "list.yaml"))
    assert len(jobs) == 2 + 6
    assert jobs[-1].values == (("headroom", 0.1), ("demand.0.rate_per_s", 100.0))
    assert jobs[-2].values[1][1] == pytest.approx(10.0)
    assert len({job.name for job in jobs}) == 8


def test_text_list_has_a_path_a_line(night: Path) -> None:
    (night.parent / "list.txt").write_text("# tonight\nnight/a.json\n\nnight/b.json\n")
    assert [job.name for job in read_jobs(str(night.parent / "list.txt"))] == ["night/a.json", "night/b.json"]


def test_all_mistakes_of_a_list_are_told_with_their_lines(night: Path) -> None:
    path = night.parent / "list.yaml"
    path.write_text('- night/*.toml\n- instance: night/a.json\n  sweep: {"a..b": [1]}\n')
    with pytest.raises(DescriptionError) as told:
        read_jobs(str(path))
    assert [finding.message for finding in told.value.findings] == [
        "jobs.0: night/*.toml names no file",
        "jobs.1: 'a..b' is no path of keys such as slo.ttft_s",
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"instance": "a.json", "sweeps": {}}, "unknown key"),
        ({"instance": "a.json", "sweep": {"headroom": []}}, "is neither a list of 1 to 100000 values"),
        (
            {"instance": "a.json", "sweep": {"headroom": {"first": 0, "last": 1, "points": 3, "scale": "log"}}},
            "above 0",
        ),
        ({"instance": "a.json", "current": "plan.json"}, "replanning needs current, move_price and horizon_hours"),
        ({"instance": "a.json", "current": "p", "move_price": -1, "horizon_hours": 1}, "greater than or equal to 0"),
    ],
)
def test_bad_entries(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"jobs": [entry]}))
    with pytest.raises(DescriptionError, match=message):
        read_jobs(str(path))


def test_a_sweep_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(OptionError, match="makes 4000000000000 jobs"):
        read_jobs(
            __file__[: __file__.index("tests")] + "instances/fleet/two_offers.yaml",
            dict.fromkeys(("headroom", "spare_instances"), range(2_000_000)),
        )


def test_swept_values_reach_positions_names_and_new_keys(night: Path) -> None:
    values = {"offers.one.price_usd_per_hour": [5], "demand.0.rate_per_s": [7], "slo.ttft_s": [0.5]}
    [job] = read_jobs(str(night / "a.json"), values)
    value = swept_source(job.payload(Settings())).value
    assert value["offers"][0]["price_usd_per_hour"] == 5
    assert value["demand"][0]["rate_per_s"] == 7
    assert value["slo"] == {"ttft_s": 0.5}


@pytest.mark.parametrize("key", ["offers.two.gpus", "demand.1.rate_per_s", "demand.-1.rate_per_s"])
def test_a_step_that_leads_nowhere_is_located_at_the_key(night: Path, key: str) -> None:
    [job] = read_jobs(str(night / "a.json"), {key: [1]})
    with pytest.raises(DescriptionError, match=f"sweep {key}: leads nowhere"):
        swept_source(job.payload(Settings()))


def test_a_quoted_step_may_hold_dots() -> None:
    assert loc_of('offers."p5.4xlarge".max_count') == ("offers", "p5.4xlarge", "max_count")


def test_key_depends_on_text_values_and_settings_but_not_on_where_the_folder_is(night: Path) -> None:
    job = Job(name="a.json", path=str(night / "a.json"))
    key = job.payload(Settings())["key"]
    moved = night.rename(night.parent / "moved")
    assert Job(name="a.json", path=str(moved / "a.json")).payload(Settings())["key"] == key
    assert Job(name="a.json", path=str(moved / "a.json")).payload(Settings(seed=1))["key"] != key
    write_fleet(moved, "a", headroom=0.1)
    assert Job(name="a.json", path=str(moved / "a.json")).payload(Settings())["key"] != key


@given(num_jobs=st.integers(0, 50), count=st.integers(1, 9), zero_based=st.booleans())
def test_shards_take_each_job_once(num_jobs: int, count: int, zero_based: bool) -> None:
    """Counted from 0 or from 1, as the field does both."""
    jobs = [Job(name=str(place), path="") for place in range(num_jobs)]
    first = 0 if zero_based else 1
    taken = [job for index in range(first, first + count) for job in Shard(index, count).of(jobs)]
    assert sorted(job.name for job in taken) == sorted(job.name for job in jobs)


def test_shard_of_a_slurm_task_and_of_a_pod() -> None:
    slurm = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}
    tasks = [Shard.from_environment({**slurm, "SLURM_ARRAY_TASK_ID": str(task)}) for task in (10, 12, 14, 16)]
    assert tasks == [Shard(1, 4), Shard(2, 4), Shard(3, 4), Shard(4, 4)]
    assert Shard.from_environment({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "3"}) == Shard(3, 3)
    assert Shard.from_environment({}) is None
    with pytest.raises(OptionError, match="JOB_COMPLETIONS"):
        Shard.from_environment({"JOB_COMPLETION_INDEX": "2"})
    with pytest.raises(OptionError, match="no number"):
        Shard.from_environment({"SLURM_ARRAY_TASK_ID": "x"})


@pytest.mark.parametrize("text", ["3/2", "1/0", "a/b", "1", "-1/2", ""])
def test_bad_shards(text: str) -> None:
    with pytest.raises(OptionError, match="a shard is k/n"):
        Shard.parse(text)


@pytest.mark.parametrize("wrong", [{"time_limit_s": -1}, {"hard_time_limit_s": 1}, {"memory_limit_bytes": 0}])
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Settings(**wrong)  # type: ignore[arg-type]
