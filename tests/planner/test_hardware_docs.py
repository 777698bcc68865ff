"""The examples of docs/hardware.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cluster import Cluster
from planner.files import read_as
from planner.hardware import DeviceKind
from planner.plausibility import device_notes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml[^\n]*\n# (device|cluster)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_example_is_found() -> None:
    assert len(EXAMPLES) == PAGE.count("```yaml") == 6


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_the_examples_are_read(tmp_path: Path, kind: str, text: str) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    if kind == "device":
        assert device_notes(read_as(path, DeviceKind)) == ()
    else:
        assert not [note for note in read_as(path, Cluster).notes() if "check its unit" in note]


def test_the_python_prints_what_it_says() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=True, timeout=60)
    numbers = [float(word) for word in re.findall(r"\d+\.\d+(?:e[+-]?\d+)?", done.stdout)]
    bandwidths = [number for number in numbers if number > 1e9]
    assert bandwidths == pytest.approx([50e9, 93.75e9, 400e9, 450e9, 93.75e9])
