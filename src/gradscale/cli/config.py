"""Options from a TOML file; the command line overrides them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

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
        BadInput: if the file cannot be read, or has a key that is no option or a value of the wrong
            kind.
    """
    if path is None:
        return
    options = {_key(p): p for p in context.command.params if p.name not in NOT_IN_FILE}
    known = {key: option for key, option in options.items() if not getattr(option, "hidden", False)}
    values: dict[str, object] = {}
    for key, value in _parse(path).items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            former = options.get(key.replace("_", "-"))
            raise BadInput(_unknown(path, key, sorted(known), getattr(former, "help", None)))
        # Before click sees it, which would round, or read a number as a name.
        holds, rule = _rule(option)
        if not holds(value):
            raise BadInput(f"`{key} = {value!r}` in {path} must be {rule}.")
        values[option.name] = ",".join(map(str, value)) if isinstance(value, list) else value
    # As defaults, so that click checks them like anything typed, and what is typed wins.
    context.default_map = {**(context.default_map or {}), **values}


def _parse(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"`--config {path}` cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"`--config {path}` is not valid TOML: {error}.") from error


def _key(option: click.Parameter) -> str:
    """The long name as typed, without its dashes."""
    return max(option.opts, key=len).lstrip("-")


def _rule(option: click.Parameter) -> tuple[Callable[[object], bool], str]:
    """What a value may be, and the same in words. Click would round 2.5 steps to 2."""
    if isinstance(option, click.Option) and option.is_flag:
        return (lambda value: isinstance(value, bool)), "true or false"
    if isinstance(option.type, click.types.IntParamType):
        return (lambda value: type(value) is int), "a whole number"
    # Our own parsers take text, whether a number or a list was meant.
    if isinstance(option.type, click.types.FuncParamType):
        return _is_plain, "a number, a name in quotes, or a list of these where several are allowed"
    return (lambda value: isinstance(value, str)), "text in quotes"


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(type(part) in (str, int, float) for part in cast("list[object]", value))
    return type(value) in (str, int, float)


def _unknown(path: Path, key: str, options: list[str], renamed: str | None) -> str:
    if renamed is not None:
        return f"`{key}` in {path} is called `{renamed.lstrip('-')}` now, as everywhere else."
    close = difflib.get_close_matches(key.replace("_", "-"), options, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return (
        f"`{key}` in {path} is not an option of this command.{hint} Options: {', '.join(options)}."
    )
