"""Which gpuplan wrote a file."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def gpuplan_version() -> str:
    """Version of the installed distribution, or `0+unknown` in a source tree that is not installed."""
    try:
        return version("gpuplan")
    except PackageNotFoundError:
        return "0+unknown"
