"""An mkdocs hook: what the start page shows of the README is taken from there, and said once.

``<!-- readme: drop-in -->`` becomes the README's first block of code with the lines below it, and
``<!-- readme: compare -->`` its first table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"
PARTS = {
    "drop-in": re.compile(r"^(```diff\n.*?\n```\n\n.*?)\n\n", re.MULTILINE | re.DOTALL),
    "compare": re.compile(
        r"<!-- first table: begin;.*?-->\n(.*?)<!-- first table: end -->", re.DOTALL
    ),
}
PLACE = re.compile(r"<!-- readme: ([\w-]+) -->")


def on_page_markdown(markdown: str, **rest: Any) -> str:
    """Called by mkdocs with the text of each page."""
    del rest
    return PLACE.sub(lambda place: part_of_readme(place[1]), markdown)


def part_of_readme(name: str) -> str:
    """A part of the README, with its links as they are from the folder of the pages."""
    found = PARTS[name].search(README.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"README.md has no part {name!r} any more: see docs/site/start_page.py.")
    text = re.sub(r"\]\(docs/", "](", found[1]).strip()
    return re.sub(r" (±|%) ?", lambda sign: f"\u00a0{sign[0].strip()}\u00a0", text)
