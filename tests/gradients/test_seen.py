"""A gradient that was seen is told from one that was written, replaced, cleared or made since."""

from __future__ import annotations

import gc

import pytest
import torch

from gradscale.gradients.seen import seen_gradients


def filled() -> torch.Tensor:
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.ones(2)
    return parameter


def add(parameter):
    parameter.grad.add_(1)


def replace(parameter):
    parameter.grad = parameter.grad.clone()


def clear(parameter):
    parameter.grad = None


@pytest.mark.parametrize("change", [add, replace, clear])
def test_what_becomes_of_a_gradient_is_seen(change):
    parameter = filled()
    (before,) = seen_gradients([parameter])
    assert before.same
    change(parameter)
    assert not before.same


def test_a_gradient_that_is_made_is_seen():
    parameter = torch.ones(2, requires_grad=True)
    (before,) = seen_gradients([parameter])
    assert before.same and before.gradient is None
    parameter.grad = torch.ones(2)
    assert not before.same


def test_a_gradient_made_in_inference_mode_counts_no_writes():
    parameter = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        parameter.grad = torch.ones(2)
    (before,) = seen_gradients([parameter])
    assert before.same
    parameter.grad = None
    assert not before.same


def test_nobody_keeps_a_gradient_alive_by_looking_at_it():
    parameter = filled()
    (before,) = seen_gradients([parameter])
    parameter.grad = None
    gc.collect()
    assert before.gradient is not None and before.gradient() is None
