"""Every page of the documentation: its commands and Python run, print what is shown, and its files are valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_files import FILES, write_files
from docs_runner import DOCS, Runner, steps

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


def test_files_belong_to_pages() -> None:
    assert set(FILES) <= set(PAGES)
