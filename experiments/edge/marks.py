"""What is generated stands on a page between two marks, and nothing else does."""

from __future__ import annotations

import re


def with_generated(page: str, mark: str, text: str) -> str:
    """The page with `text` between the marks of that name; as it was if it has none."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        print(f"no marks `{begin}` … `{end}`; left out")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page)
