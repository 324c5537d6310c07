"""Calling the `gradscale` program in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from gradscale.cli.group import gradscale


def call(*arguments: str | int | Path) -> Result:
    """What a command line comes to; an exception that the program does not handle is raised."""
    result = CliRunner().invoke(gradscale, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
