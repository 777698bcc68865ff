"""The guide's examples run and print what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"
#: Each example and the line that follows it.
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n    (.*?)\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_the_example_prints_what_the_guide_says(code: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.split() == printed.split()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2
