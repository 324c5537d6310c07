"""Arguments that are refused where they are passed, by the call that they were passed to."""

from __future__ import annotations

from gradscale.formats import FloatFormat


def check_switch(call: str, name: str, value: object) -> None:
    """Refuses what is neither True nor False: a text such as ``"no"`` would count as True.

    Raises:
        TypeError: if it is no bool.

    Example:
        >>> check_switch("watch", "activations", "no")
        Traceback (most recent call last):
            ...
        TypeError: `watch(activations='no')` must be True or False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{call}({name}={value!r})` must be True or False.")


def check_whole(call: str, name: str, value: object, least: int, otherwise: str) -> None:
    """Refuses what is no whole number of at least `least`; to Python True is one.

    Args:
        call: as the user knows it.
        name: of the argument.
        value: that was given.
        least: that is allowed.
        otherwise: what to do instead, in a sentence.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> check_whole("advise", "steps", 2.5, 1, "Pass 8.")
        Traceback (most recent call last):
            ...
        ValueError: `advise(steps=2.5)` must be a whole number of at least 1. Pass 8.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"`{call}({name}={value!r})` must be a whole number of at least {least}. {otherwise}"
        )


def format_given(call: str, name: str, value: object) -> FloatFormat:
    """A number format that was passed in.

    Raises:
        ValueError: if it is none.

    Example:
        >>> format_given("watch", "format", "fp16").name
        'fp16'
    """
    try:
        return FloatFormat.of(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        said = str(error).partition(" is not a known format. ")[2] or str(error)
        raise ValueError(f"`{call}({name}={value!r})` must be a number format. {said}") from None
