"""Options under a name that they once had: refused, with the name that they have now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from gradscale.cli.errors import BadInput

Command = TypeVar("Command", bound=Callable[..., object])


def renamed(old: str, new: str) -> Callable[[Command], Command]:
    """Refuses the option `old` of a command, and names the one that says the same."""

    # A callback, for click runs it wherever the option stands, and before the command.
    def refuse(context: click.Context, parameter: click.Parameter, value: object) -> None:
        del context, parameter
        if value is not None:
            raise BadInput(f"`{old} {value}` is called `{new} {value}` now, as everywhere else.")

    return click.option(old, hidden=True, help=new, expose_value=False, callback=refuse)
