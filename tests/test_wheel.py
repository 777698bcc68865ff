"""The wheel holds our packages and nothing else, and works away from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_our_packages_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"planner", "formulations", "cli"}
    assert len(top) == 4
    for name in names:
        facts = name.startswith("planner/catalog/") and name.endswith(".json")
        assert facts or Path(name).suffix in {".py", ".typed", ".j2", ""} or ".dist-info/" in name, name
        assert "__pycache__" not in name
        assert "tests" not in name.split("/")
        assert "instances" not in name.split("/")
    shipped = {name for name in names if name.endswith(".py")}
    source = {
        path.relative_to(ROOT).as_posix()
        for package in ("planner", "formulations", "cli")
        for path in (ROOT / package).rglob("*.py")
    }
    assert shipped == source


@pytest.mark.slow
def test_the_installed_wheel_plans_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True, cwd=work)
    instance = {
        "problem": "experts",
        "name": "tiny",
        "num_gpus": 2,
        "num_slots": 4,
        "loads": [{"counts": [[3, 2, 1], [1, 1, 4]]}],
    }
    (work / "tiny.json").write_text(json.dumps(instance))
    program = (
        "import cli.app, formulations, planner\n"
        "from formulations import SolveOptions, plan\n"
        "document = plan('tiny.json', options=SolveOptions(work_limit=50))\n"
        "print(document.outcome.status, document.verdict.feasible)\n"
        "print(planner.__file__, formulations.__file__, cli.app.__file__, sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=work, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, *homes = done.stdout.splitlines()
    assert first in ("feasible True", "optimal True")
    assert all(Path(home).is_relative_to(target) for home in homes)
