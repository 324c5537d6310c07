"""Passes are heard while somebody listens; then `torch.autograd.backward` is its own again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from gradscale.watching.passes import _LISTENERS, listen, stop_listening

ORIGINAL = torch.autograd.backward


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @contextmanager
    def around(self, tensors: Any) -> Iterator[None]:
        self.heard.append("begin")
        try:
            yield
        finally:
            self.heard.append("end")


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    listen(ear.around)
    yield ear
    if ear.around in _LISTENERS.all:
        stop_listening(ear.around)
    assert torch.autograd.backward is ORIGINAL


def loss() -> torch.Tensor:
    return torch.ones(2, requires_grad=True).sum()


def test_methods_functions_and_keywords_are_all_heard(ear: Ear) -> None:
    loss().backward()
    torch.autograd.backward([loss(), loss()])
    torch.autograd.backward(tensors=loss())
    assert ear.heard == ["begin", "end"] * 3


def test_the_pass_inside_a_reentrant_checkpoint_is_heard_inside_the_outer_one(ear: Ear) -> None:
    x = torch.ones(2, requires_grad=True)
    checkpoint(torch.sin, x, use_reentrant=True).sum().backward()
    assert ear.heard == ["begin", "begin", "end", "end"]


def test_an_error_inside_the_pass_reaches_everybody_and_the_caller(ear: Ear) -> None:
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar"):
        torch.ones(2, requires_grad=True).sin().backward()
    assert ear.heard == ["begin", "end"]


def test_after_the_last_listener_the_function_is_torch_s_own(ear: Ear) -> None:
    other = Ear()
    listen(other.around)
    stop_listening(ear.around)
    assert torch.autograd.backward is not ORIGINAL
    stop_listening(other.around)
    assert torch.autograd.backward is ORIGINAL
    loss().backward()
    assert ear.heard == other.heard == []


def test_what_others_put_on_top_stays_and_keeps_working() -> None:
    ear, calls = Ear(), []
    listen(ear.around)
    below = torch.autograd.backward

    def on_top(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        below(*args, **kwargs)

    torch.autograd.backward = on_top
    try:
        stop_listening(ear.around)
        assert torch.autograd.backward is on_top
        loss().backward()
        assert calls == [1] and ear.heard == []
        listen(ear.around)
        loss().backward()
        assert calls == [1, 1] and ear.heard == ["begin", "end"]
        stop_listening(ear.around)
        assert torch.autograd.backward is on_top
    finally:
        torch.autograd.backward = ORIGINAL
