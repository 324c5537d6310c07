"""Trainers of other packages: there where `make test-hosts` runs, elsewhere their tests skip."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

APART = Path(sys.prefix) / "apart"
"""Packages that no test may import but those that ask for them: see the Makefile."""


def host(module: str) -> Any:
    """The module of a host; without it the tests of a file skip, or fail where it is required."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        if os.environ.get("GRADSCALE_HOSTS") == "required":
            raise
        pytest.skip(f"needs {module} ({error}): run `make test-hosts`", allow_module_level=True)


def apart() -> Path:
    """The folder of packages that are kept apart; without it the tests of a file skip, or fail."""
    if not APART.is_dir():
        if os.environ.get("GRADSCALE_HOSTS") == "required":
            raise FileNotFoundError(APART)
        pytest.skip(f"needs {APART}: run `make test-hosts`", allow_module_level=True)
    return APART
