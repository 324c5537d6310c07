"""Trainers of other packages: there where `make test-hosts` runs, elsewhere their tests skip."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import pytest

NOWHERE = {"timm", "torchvision"}
"""A torchvision that fits torch's build for the CPU is on no index: never required."""


def host(module: str) -> Any:
    """The module of a host; without it the tests of a file skip, or fail where it is required."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        required = os.environ.get("GRADSCALE_HOSTS") == "required"
        if required and error.name not in NOWHERE:
            raise
        pytest.skip(f"needs {module} ({error}): run `make test-hosts`", allow_module_level=True)
