"""Every page of the documentation: its commands and Python run, print what is shown, and its files are valid."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from docs_files import FILES, write_files
from docs_runner import DOCS, Runner, steps
from ruamel.yaml import YAML

from planner import writers

#: Pages that docs/tools/pages.py makes have tests of their own.
MADE = ("accuracy", "commands", "instances", "other_files", "plans")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.stem not in MADE)


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_shows_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instances").symlink_to(DOCS.parent / "instances")
    # A page registers a format of its own.
    monkeypatch.setattr(writers, "WRITERS", writers.WRITERS)
    write_files(page, tmp_path)
    runner = Runner(page)
    for step in steps((DOCS / page).read_text(encoding="utf-8")):
        runner.run(step)
    if page == "tutorial.md":
        tutorial_is_applicable()


def tutorial_is_applicable() -> None:
    """Manifests by Kubernetes' schemas; the pods that are pending then are those of pods.json."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = list(YAML(typ="safe", pure=True).load_all(Path("deployments.yaml").read_text()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for manifest in manifests:
            kubernetes_validate.validate(manifest, "1.37", strict=True)
    deployments = [one for one in manifests if one["kind"] == "Deployment"]
    pending = [
        (one["metadata"]["labels"], one["spec"]["containers"][0]["resources"]["limits"])
        for one in json.loads(Path("pods.json").read_text())["items"]
        if "nodeName" not in one["spec"]
    ]
    pods = [(one["spec"], one["spec"]["template"]["spec"]["containers"][0]) for one in deployments]
    made = [
        (deployment["selector"]["matchLabels"], container["resources"]["limits"])
        for deployment, container in pods
        for _ in range(deployment["replicas"])
    ]
    assert all("/maps/map.json" in container["args"] for _, container in pods)
    assert sorted(pending, key=str) == sorted(made, key=str)


def test_files_belong_to_pages() -> None:
    assert set(FILES) <= set(PAGES)
