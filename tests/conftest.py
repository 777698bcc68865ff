"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings, which are not part of the repository; GPUPLAN_SHARED_DATA overrides it.

    Tests that need it are skipped where it is absent, except under CI, where its absence is a failure.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GPUPLAN_SHARED_DATA", default))
    if not folder.is_dir():
        reason = f"no recordings at {folder}; set GPUPLAN_SHARED_DATA"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
