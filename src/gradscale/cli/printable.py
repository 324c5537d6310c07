"""Text of files and of users, made harmless for a terminal."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_SWITCHES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of Unicode: control, format (which turns the direction of text), half characters
that no encoding takes, and what ends a line or a paragraph."""


def printable(text: str) -> str:
    r"""`text` with everything that a terminal would obey, or could not print, written out.

    A key in a checkpoint may move the cursor, clear the screen or set the window's title.

    Example:
        >>> printable("scaler\x1b]0;mine\x07, 2¹⁶")
        'scaler\\x1b]0;mine\\x07, 2¹⁶'
    """
    # Most of what is printed, which then costs nothing.
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_written, text))


def _written(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _SWITCHES:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
