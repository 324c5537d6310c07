"""A griffe extension: an ``Example:`` of ours is a section of code, as ``Examples:`` is.

griffe takes only the plural for one, and makes an admonition of the singular, in which the
prompts of a doctest are three nested quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^( *)Example:$", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Renames the section in every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Called once for every module, class, function and attribute."""
        del rest
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(r"\1Examples:", obj.docstring.value)
