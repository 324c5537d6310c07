"""`gradscale.watch` alone sees the inside of compiled graphs, as in the eager run."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradscale
from gradscale.watching.rows import Row

compile: Any = torch.compile


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer-wise scaler of another test would look into what is compiled here."""
    monkeypatch.setattr("gradscale.compiled.preparing._WISHES", weakref.WeakSet())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))


def compiled(model: nn.Module) -> nn.Module:
    return compile(model, backend="aot_eager")


def rows(around: Callable[[nn.Module], nn.Module], *, early: bool = False) -> dict[str, Row]:
    model = network()
    run = around(model)
    batch = torch.ones(3, 8)
    if early:
        run(batch)
    with gradscale.watch(model, every=1) as watch:
        for _ in range(2):
            run(batch).square().mean().mul(1024.0).backward()
            watch.end_step()
    return {row.name: row for row in watch.report().in_order}


def test_a_watch_sees_in_a_compiled_model_what_it_sees_in_the_eager_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = rows(compiled)
    assert found == rows(lambda model: model)
    assert {"0", "3", "2.weight"} <= set(found)


def test_of_a_model_that_was_compiled_before_it_says_so_once_and_measures_the_borders() -> None:
    with pytest.warns(UserWarning, match="compiled before this watch was built") as seen:
        found = rows(compiled, early=True)
    assert sum("only what enters and leaves" in str(one.message) for one in seen) == 1
    eager = rows(lambda model: model)
    assert "0" not in found
    parameters = [name for name in eager if "." in name]
    assert [found[name].counts for name in parameters] == [eager[n].counts for n in parameters]
