"""Sentences as wide as the screen: each line keeps its indent where it goes on."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection

from rich.console import Console
from rich.text import Text

from gradscale.cli.display import flows

HANGING = 2
"""Columns by which what goes on stands further to the right."""

NARROWEST = 20
_LEAD = re.compile(r" *(?:(?:error|warning|note) +)?")


def wrapped(text: str, width: int, verbatim: Collection[str] = ()) -> str:
    """A text of several lines, none longer than the screen if words allow it.

    What is copied from the screen, such as code, stays a line.

    Args:
        text: lines, with whatever indent.
        width: of the screen, in columns.
        verbatim: lines, without their indent, that stay as they are.

    Example:
        >>> print(wrapped("  a line that goes on for a while", 28))
          a line that goes on for a
            while
    """
    lines = text.split("\n")
    return "\n".join(
        line if line.strip() in verbatim or len(line) <= width else _wrapped(line, width)
        for line in lines
    )


def _wrapped(line: str, width: int) -> str:
    # What goes on stands under the words, not under the indent or the word in front of them.
    found = _LEAD.match(line)
    lead = "" if found is None else found.group()
    return textwrap.fill(
        line[len(lead) :],
        max(width, len(lead) + NARROWEST),
        initial_indent=lead,
        subsequent_indent=" " * (len(lead) + HANGING),
        break_long_words=False,
        break_on_hyphens=False,
    )


def say(
    screen: Console,
    text: str,
    verbatim: Collection[str] = (),
    style: str = "",
    lead: tuple[str, int] = ("", 0),
) -> None:
    """Prints sentences: as wide as the screen, or unbroken into a file or a pipe.

    Args:
        screen: where to.
        text: lines, with whatever indent.
        verbatim: lines, without their indent, that stay as they are.
        style: of all of it.
        lead: the style of its beginning, and how many letters that has.
    """
    words = Text(text if flows(screen) else wrapped(text, screen.width, verbatim), style=style)
    words.stylize(lead[0], 0, lead[1])
    screen.print(words, soft_wrap=True)
