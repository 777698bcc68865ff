"""Popular models as facts: one JSON file each with the sizes of its architecture and where they come from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from planner.descriptions.base import Description
from planner.errors import OptionError
from planner.files import read_as
from planner.model.spec import ModelSpec
from planner.readers.hf_config import from_mapping, read_model

FOLDER = Path(__file__).parent

NonEmpty = Annotated[str, Field(min_length=1)]


class Published(Description):
    """What the vendor says, rounded as it is said: parameters in billions, and by which count."""

    total_b: Annotated[float, Field(gt=0)]
    active_b: Annotated[float, Field(gt=0)]
    source: NonEmpty


class CatalogModel(Description):
    """One model: sizes in Hugging Face's names, and the page they can be checked on."""

    id: NonEmpty
    aliases: tuple[NonEmpty, ...] = ()
    source: NonEmpty
    published: Published
    config: dict[str, Any]


def model_names() -> tuple[str, ...]:
    """Hugging Face ids of all models of the catalogue, sorted."""
    return tuple(sorted(_files(), key=str.lower))


def entry(name: str) -> CatalogModel:
    """The facts of one model by id, alias or the part of an id after the slash; OptionError with near names."""
    found = _index().get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), list(_index()), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`gpuplan catalog models` lists those it has"
        raise OptionError(f"the catalogue has no model {name[:80]!r}; {hint} Else give the path of a config.json")
    return read_as(_files()[found], CatalogModel)


def model(name_or_path: str | Path) -> ModelSpec:
    """A model by catalogue name, or from a config.json or a folder that holds one.

    A path that exists comes before a name. Raises OptionError for an unknown name, DescriptionError for a bad file.
    """
    path = Path(name_or_path)
    if str(name_or_path) == "-" or path.suffix == ".json" or path.is_absolute() or (path / "config.json").is_file():
        return read_model(name_or_path)
    return _described(entry(str(name_or_path)).id)


@cache
def _described(name: str) -> ModelSpec:
    one = entry(name)
    return from_mapping(one.config, one.id, one.source)


@cache
def _files() -> Mapping[str, Path]:
    """File of each model by id; the file name is the id with -- for the slash."""
    return {path.stem.replace("--", "/", 1): path for path in sorted(FOLDER.glob("*.json"))}


@cache
def _index() -> Mapping[str, str]:
    """Id by every lower-case name that means it."""
    index: dict[str, str] = {}
    for name, path in _files().items():
        aliases = json.loads(path.read_text(encoding="utf-8"))["aliases"]
        for alias in (name, name.rpartition("/")[2], *aliases, *(one.rpartition("/")[2] for one in aliases)):
            index.setdefault(alias.lower(), name)
    return index
