"""Compiled graphs are prepared while a test runs, and forgotten after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gradscale.compiled.preparing import prepare_compiled


class Wish:
    """Somebody who wants a plan in what is compiled, as long as he lives."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def wish() -> Iterator[Wish]:
    made = Wish()
    prepare_compiled(made)
    yield made
