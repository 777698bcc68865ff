"""Models that a table names: config files of a folder, then the catalogue. A name is never used as a path."""

from __future__ import annotations

from pathlib import Path

from planner import catalog
from planner.catalog.models import entry
from planner.errors import DescriptionError
from planner.model.spec import ModelSpec
from planner.readers.hf_config import read_model


class ModelNames:
    """`<org>--<name>.json` files of a folder by lower-case name, with and without the organisation."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """DescriptionError when it is no folder; None is the catalogue alone."""
        self._files: dict[str, Path] = {}
        if folder is None:
            return
        if not Path(folder).is_dir():
            raise DescriptionError.single(folder, "is not a folder of config files")
        for path in sorted(Path(folder).glob("*.json")):
            name = path.stem.replace("--", "/", 1).lower()
            self._files[name] = path
            self._files.setdefault(name.rpartition("/")[2], path)

    def find(self, name: str) -> ModelSpec:
        """OptionError for an unknown name, DescriptionError for a bad file."""
        file = self._files.get(name.lower())
        return catalog.model(entry(name).id) if file is None else read_model(file)
