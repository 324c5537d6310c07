"""Options from a TOML file; the command line overrides them."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import click

from gradscale.cli.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Options that say what to do rather than what to train.
NOT_IN_FILE = {"config", "resume", "help"}


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of the command's options.

    Keys are the options' long names, with ``-`` or ``_``; a list stands for comma-separated values.

    Raises:
        BadInput: if the file cannot be read or has a key that is no option.
    """
    if path is None:
        return
    known = {p.name for p in context.command.params if p.name} - NOT_IN_FILE
    values: dict[str, Any] = {}
    for key, value in _parse(path).items():
        name = key.replace("-", "_")
        if name not in known:
            raise BadInput(_unknown(path, key, known))
        values[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **values}


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"`--config {path}` cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"`--config {path}` is not valid TOML: {error}.") from error


def _unknown(path: Path, key: str, known: set[str]) -> str:
    options = sorted(name.replace("_", "-") for name in known)
    close = difflib.get_close_matches(key.replace("_", "-"), options, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return (
        f"`{key}` in {path} is not an option of this command.{hint} Options: {', '.join(options)}."
    )
