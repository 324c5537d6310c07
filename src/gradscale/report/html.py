"""The page as one file: its own styles and scripts, the data, and the installed plotly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from gradscale.files.replacement import MARK
from gradscale.report.arrays import packed
from gradscale.report.payload import payload_of, to_json
from gradscale.report.run import Run

STYLES = ("tokens", "layout", "table", "print")
SCRIPTS = (
    *("arrays", "text", "dom", "state", "theme", "plots", "thin"),
    *("counting", "filter", "overview", "verdict", "timeline", "skips", "heat"),
    *("scale", "curve", "rowplot", "strips", "plan", "compared", "rows", "print", "main"),
)
"""In this order: a file may use at once what those before it define."""


def html_of(runs: Sequence[Run], title: str) -> str:
    """The whole page.

    Args:
        runs: at least one.
        title: its heading.
    """
    payload, arrays = payload_of(runs, title)
    script = "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    parts = {
        "title": escape(title),
        "mark": MARK,
        "style": "\n".join(_file(f"{name}.css") for name in STYLES),
        "script": f'(() => {{\n"use strict";\n{script}\n}})();',
        "payload": to_json(payload),
        "arrays": arrays.packed(),
        "plotly": packed(plotly_source().encode()),
    }
    # In one go: what stands in one part, such as `$title` in a script, is not looked at again.
    return re.sub(r"\$(\w+)", lambda match: parts[match[1]], _file("page.html"))


def plotly_source() -> str:
    """The script of plotly.js that the installed plotly brings along.

    Raises:
        ImportError: if plotly is not installed; the message says how to.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            "The report is drawn with plotly, which is not installed. Install it with "
            '`pip install "gradscale[report]"`.'
        ) from error
    return get_plotlyjs()


def _file(name: str) -> str:
    return (files("gradscale.report") / "page" / name).read_text(encoding="utf-8")
