"""A report as one HTML file that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from planner.errors import MissingExtraError
from planner.reporting.page import Figure, Grid, Items, Lines, Report


def to_html(report: Report) -> str:
    """The page. Text is escaped; figures are SVG that `charts` drew. Raises MissingExtraError."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise MissingExtraError("HTML reports need the extra gpuplan[report]") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((files("planner.reporting") / "page.html.j2").read_text(encoding="utf-8"))
    kinds: dict[type, str] = {Lines: "lines", Grid: "grid", Figure: "figure", Items: "items"}

    def kind(block: Any) -> str:
        return kinds[type(block)]

    return str(template.render(report=report, kind=kind, svg=lambda figure: Markup(figure.svg)))
