"""The user's own function, imported from where the command was typed."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from gradscale.cli.errors import BadInput


def user_function(target: str) -> Callable[[], object]:
    """The function that ``package.module:function`` names; the current folder is searched first.

    Raises:
        BadInput: it cannot be imported, is not there, or cannot be called.
    """
    name, colon, attribute = target.partition(":")
    if not (name and colon and attribute):
        raise BadInput(
            f"`{target}` must be `package.module:function`, such as `my_training:model_step` for "
            "the function `model_step` in `my_training.py`."
        )
    if name.endswith(".py") or "/" in name:
        plain = name.removesuffix(".py").strip("./").replace("/", ".")
        raise BadInput(f"`{target}` names a file. Write it as a module: `{plain}:{attribute}`.")
    found: object = _imported(name, target)
    # `module:Class.method` is a function as well.
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise BadInput(_missing(found, part, target))
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(
            f"`{target}` is {type(found).__name__}; it must be a function without arguments that "
            "returns `(model, batches, loss)`."
        )
    return found


def _imported(name: str, target: str) -> ModuleType:
    here = str(Path.cwd())
    # As `python -m` has it, and an installed command has not.
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        wanted = error.name or ""
        # Its own name, or a package that it is in: else it is the user's import that failed.
        if name == wanted or name.startswith(f"{wanted}."):
            raise BadInput(
                f"`{target}`: there is no module `{wanted}` in {here} and none is installed."
            ) from error
        raise BadInput(
            f"`{target}`: importing `{name}` failed, because it needs `{wanted}`, which is not "
            "installed."
        ) from error
    except Exception as error:
        raise BadInput(f"`{target}`: importing `{name}` failed: {in_words(error)}") from error


def _missing(owner: object, name: str, target: str) -> str:
    where = getattr(owner, "__name__", "")
    own = [
        key
        for key, value in vars(owner).items()
        if callable(value) and getattr(value, "__module__", None) == where
    ]
    close = difflib.get_close_matches(name, own, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    known = f" It defines: {', '.join(own)}." if own and not close else ""
    return f"`{target}`: there is no `{name}` in `{where}`.{hint}{known}"


@contextmanager
def user_code(what: str) -> Generator[None]:
    """Turn whatever the user's code raises into a message that says where.

    Args:
        what: whose code runs, such as ``"`my_training:model_step`"``.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        # The library's own messages quote the call, and need no more words.
        own = isinstance(error, TypeError | ValueError) and str(error).startswith("`")
        message = str(error) if own else f"{what} failed: {in_words(error)}"
        raise BadInput(message) from error


def in_words(error: BaseException) -> str:
    """Kind, message and place of an error, the place being the innermost of the user's own lines.

    Example:
        >>> in_words(ValueError("no data"))
        'ValueError: no data'
    """
    first = str(error).strip().split("\n")[0]
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    here = Path.cwd()
    # From within: the last line of the user's own is where they look first.
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_absolute() and path.is_relative_to(here) and ".venv" not in path.parts:
            if "site-packages" not in path.parts and "gradscale" not in path.parts:
                return f"{said} ({path.relative_to(here)}, line {frame.lineno})"
    return said
