"""`gpuplan catalog` and `gpuplan schema`: what the toolkit knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Command, ExitCode, Group
from cli.options import JsonOption

if TYPE_CHECKING:
    from formulations.base import Formulation

catalog = typer.Typer(cls=Group, help="Look up what gpuplan knows.", no_args_is_help=True, rich_markup_mode=None)


def _formulations() -> dict[str, Formulation[Any, Any]]:
    from formulations.kinds import HOMES, kind

    return {name: kind(name).formulation for name in HOMES}


def _complete_formulation(incomplete: str) -> list[str]:
    return [name for name in _formulations() if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from planner.catalog import model_names

    return [name for name in model_names() if name.lower().startswith(incomplete.lower())]


def _complete_hardware(listing: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from planner import catalog as known

        return [name for name in getattr(known, listing)() if name.startswith(incomplete.lower())]

    return complete


def _mathematics(formulation: Formulation[Any, Any]) -> dict[str, str]:
    """Docstrings of the modules that state the problem or a model of it, by module; no solver is imported."""
    import ast
    import pkgutil
    from importlib.util import find_spec
    from pathlib import Path

    package = type(formulation).__module__.rpartition(".")[0]
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    names = sorted(module.name for module in pkgutil.iter_modules(folders) if not module.ispkg)
    found = {}
    for name in ["problem", *(name for name in names if name != "problem")]:
        text = ast.get_docstring(ast.parse(Path(folders[0], f"{name}.py").read_text(encoding="utf-8"))) or ""
        if name == "problem" or all(word in text for word in ("Variables", "Objective", "Constraints")):
            found[f"{package}.{name}"] = text
    return found


def _entry(formulation: Formulation[Any, Any]) -> dict[str, Any]:
    return {
        "name": formulation.name,
        "summary": formulation.summary,
        "objective_unit": formulation.objective_unit,
        "methods": dict(formulation.methods),
    }


@catalog.command(cls=Command)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|config.json]",
            help="one of them, or a config.json or its folder",
            autocompletion=_complete_model,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the models that ship with gpuplan, or show one: parameters, weights, cache, FLOP."""
    from cli.models import show

    show(name, as_json)
    return ExitCode.OK


@catalog.command(cls=Command)
def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|DEVICE.yaml]",
            help="one of them by any of its names, or a file that describes your own",
            autocompletion=_complete_hardware("device_names"),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the accelerators, or show one: every number with its source and how far to trust it."""
    from cli.hardware import show_devices

    show_devices(name, as_json)
    return ExitCode.OK


@catalog.command(cls=Command)
def links(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="one of them", autocompletion=_complete_hardware("link_names")),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the links: NVLink and its like, PCIe, networks; or show one. Bandwidths are one direction."""
    from cli.hardware import show_links

    show_links(name, as_json)
    return ExitCode.OK


@catalog.command(cls=Command)
def nodes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="one of them", autocompletion=_complete_hardware("node_names")),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the servers of clouds and vendors, or show one."""
    from cli.hardware import show_nodes

    show_nodes(name, as_json)
    return ExitCode.OK


@catalog.command(cls=Command)
def formulations(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="one of them: methods and mathematics",
            autocompletion=_complete_formulation,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """List the optimizations, or show one: its methods and its mathematics."""
    from cli.render import console, table
    from cli.solving import print_json
    from planner.errors import OptionError

    known = _formulations()
    if name is not None and name not in known:
        raise OptionError(f"there is no formulation {name!r}; choose from {', '.join(known)}")
    out = console()
    if name is None:
        if as_json:
            print_json([_entry(formulation) for formulation in known.values()])
        else:
            rows = [(one.name, one.summary, ", ".join(one.methods)) for one in known.values()]
            out.print(table(("formulation", "what", "methods"), rows, text_width=31))
        return ExitCode.OK
    chosen = known[name]
    mathematics = _mathematics(chosen)
    if as_json:
        print_json({**_entry(chosen), "mathematics": mathematics})
        return ExitCode.OK
    out.print(f"{name}: {chosen.summary}", style="bold", soft_wrap=True)
    out.print(f"minimises {chosen.objective_unit}", soft_wrap=True)
    out.print(table(("method", "what it is"), chosen.methods.items(), text_width=62))
    for module, text in mathematics.items():
        out.print(module, style="bold")
        out.print(text + "\n", soft_wrap=True)
    return ExitCode.OK


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="experts, plan, cluster, device or link")],
) -> int:
    """Print the JSON Schema of a file kind, for editors and validators."""
    from cli.solving import print_json
    from planner.schemas import schema as of_kind

    print_json(of_kind(kind))
    return ExitCode.OK
