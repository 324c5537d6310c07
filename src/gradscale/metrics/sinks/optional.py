"""Packages that are there only for some: imported when a sink is made, never before."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(call: str, module: str, package: str) -> ModuleType:
    """Imports `module`.

    Args:
        call: what the user wrote.
        module: to import.
        package: what to install for it.

    Raises:
        ImportError: if it is not there; the message says how to get it.

    Example:
        >>> optional("Sink()", "json", "json").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{call}` needs {package}, which is not installed here ({error}). Install it with "
            f"`pip install {package}`, or pass `log_to` any function of a `Metrics`."
        ) from error
