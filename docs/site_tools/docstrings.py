"""Docstrings as the site reads them: sections with code, and pictures with two columns."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TRANSLATIONS = {
    r"^Example:$": "Examples:",  # the name of the section whose code is shown as code
    r"^Before:: +After::$": "Before and after:",
    r"::(?=\s|$)": ":",
    r"\n(?=(Preserves|Cost): )": "\n\n",  # paragraphs of their own
}


class Docstrings(griffe.Extension):
    """Translates our docstrings into the dialect that griffe and Markdown know."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate the docstring of one object."""
        if obj.docstring is not None:
            for pattern, replacement in _TRANSLATIONS.items():
                text = re.sub(pattern, replacement, obj.docstring.value, flags=re.MULTILINE)
                obj.docstring.value = text
