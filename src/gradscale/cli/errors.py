"""Bad input ends with a message and exit code 2, never with a traceback."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import click


class BadInput(click.ClickException):
    """Something that the user can put right."""

    exit_code = 2


@contextmanager
def bad_input(
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Generator[None]:
    """Turn the errors that the library raises on wrong values or missing files into `BadInput`.

    Args:
        kinds: which errors.
    """
    try:
        yield
    except kinds as error:
        raise BadInput(str(error)) from error
