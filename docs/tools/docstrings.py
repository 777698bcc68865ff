"""An extension of Griffe: how docstrings are rendered on the documentation site, never what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from plain_text import to_markdown


class PlainText(griffe.Extension):
    """Rewrites every docstring that is loaded into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
