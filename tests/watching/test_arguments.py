"""Bad input is refused with the call, the rule and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gradscale

FROZEN = nn.Linear(1, 1).requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "settings", "kind", "words"),
    [
        ([[torch.ones(1)]], {}, TypeError, r"`watch\(list\)` needs a.*Pass the model"),
        ([FROZEN], {}, ValueError, r"`watch\(Linear\(…\)\)`: no parameter.*Unfreeze some"),
        ([nn.Linear(1, 1), "fp16"], {}, TypeError, r"`watch\(model, scaler=str\)` needs.*Leave"),
        ([nn.Linear(1, 1)], {"every": 0}, ValueError, r"`watch\(every=0\)` must be a whole number"),
        ([nn.Linear(1, 1)], {"every": 2.5}, ValueError, r"`watch\(every=2.5\)`.*pass 1"),
        ([nn.Linear(1, 1)], {"keep": 0}, ValueError, r"`watch\(keep=0\)` must be.*at least 1"),
        ([nn.Linear(1, 1)], {"format": "fp17"}, ValueError, r"`watch\(format=.fp17.\)`"),
    ],
)  # fmt: skip
def test_watch_refuses(
    arguments: list[Any], settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        gradscale.watch(*arguments, **settings)


def test_a_report_refuses_formats_and_exponents_that_are_none() -> None:
    watch = gradscale.watch(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"`FloatFormat.of\('half-ish'\)`"):
        watch.report("half-ish")
    with pytest.raises(ValueError, match=r"`watch.report\(at=0.5\)` must be the exponent.*65536"):
        watch.report(at=0.5)  # type: ignore[arg-type]


def test_a_block_inside_its_own_is_refused_and_one_of_another_watch_is_not() -> None:
    model = nn.Linear(1, 1)
    with gradscale.watch(model) as watch:
        with pytest.raises(RuntimeError, match=r"inside its own block. Make a second one"):
            watch.__enter__()
        with gradscale.watch(model) as inner:
            model(torch.ones(1, 1)).sum().backward()
    assert len(watch.report()) == len(inner.report()) == 3


def test_a_callback_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"`watch.on_measured\(3\)` needs a function"):
        gradscale.watch(nn.Linear(1, 1)).on_measured(3)  # type: ignore[arg-type]
