"""Sums that cancel: told from those that are merely small, by the size of their terms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradscale.backward.cancellation import Cancellations, mostly
from gradscale.backward.graph import walk
from truth.nets import CANCELLING, ORDINARY, Net

EVERY = (*CANCELLING, *ORDINARY)


def zeros_of(net: Net) -> dict[str, torch.Tensor]:
    loss = net.loss(net.model)
    sums = Cancellations(walk(loss))
    loss.backward()
    found = sums.zeros()
    return {n: found[id(p)] for n, p in net.model.named_parameters() if id(p) in found}


def without_digits(net: Net) -> dict[str, torch.Tensor]:
    """The oracle: float32 gradients that differ from float64 ones by more than a tenth."""
    torch.manual_seed(1)
    net.loss(net.model).backward()
    single = {n: p.grad.double() for n, p in net.model.named_parameters() if p.grad is not None}
    twin = copy.deepcopy(net.model).double()
    twin.zero_grad()
    torch.manual_seed(1)
    with doubled():
        net.loss(twin).backward()
    double = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
    return {n: (single[n] - double[n]).abs() > 0.1 * double[n].abs() for n in double}


class doubled(torch.overrides.TorchFunctionMode):
    """Float32 inputs are read in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(value):
            single = isinstance(value, torch.Tensor) and value.dtype == torch.float32
            return value.double() if single else value

        args, kwargs = torch.utils._pytree.tree_map(wide, (args, kwargs or {}))
        return func(*args, **kwargs)


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_exactly_the_gradients_that_are_zero_in_theory_are_found(make):
    net = make()
    found = zeros_of(net)
    for name, zeros in found.items():
        assert zeros.float().mean().item() == pytest.approx(net.zeros.get(name, 0), abs=1e-6), name
    assert net.zeros.keys() <= found.keys()


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_what_is_found_has_no_digit_in_common_with_float64(make):
    net = make()
    found = zeros_of(net)
    net.model.zero_grad()
    if any(isinstance(m, nn.Dropout) and m.p for m in net.model.modules()):
        pytest.skip("float64 draws another mask")
    for name, oracle in without_digits(net).items():
        if name in found:
            assert (oracle | ~found[name]).all(), f"{name}: found, but float32 has it right"
            assert bool(mostly(oracle)) == bool(mostly(found[name])), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_whole_parameters_are_told_apart_in_half_precision_too(make, dtype):
    net = make()
    if isinstance(net.model, nn.LSTM):
        pytest.skip("oneDNN has no half-precision LSTM")
    with torch.autocast("cpu", dtype):
        loss = net.loss(net.model)
    sums = Cancellations(walk(loss))
    (loss.float() * 1024).backward()
    found = sums.zeros()
    for name, parameter in net.model.named_parameters():
        if id(parameter) in found:
            assert bool(mostly(found[id(parameter)])) == (net.zeros.get(name, 0) == 1), name


def test_a_sum_that_is_small_by_chance_is_kept():
    bias = torch.zeros(1, requires_grad=True)
    terms = torch.tensor([[1.0], [-1.0 + 2**-12]])
    loss = ((torch.zeros(2, 1) + bias) * terms).sum()
    sums = Cancellations(walk(loss))
    loss.backward()
    assert bias.grad.item() == 2**-12
    assert not sums.zeros()[id(bias)].any()


def test_a_shared_bias_is_zero_only_if_all_its_uses_cancel_together():
    shared = torch.zeros(3, requires_grad=True)
    x = torch.randn(8, 3)
    loss = (x + shared).softmax(0).pow(2).sum()  # normalised over the batch: cancels
    sums = Cancellations(walk(loss))
    loss.backward()
    assert sums.zeros()[id(shared)].all()
    loss = (x + shared).softmax(0).pow(2).sum() + (x + shared).pow(2).sum()
    sums = Cancellations(walk(loss))
    loss.backward()
    assert not sums.zeros()[id(shared)].any()


def test_a_parameter_that_is_no_sum_anywhere_is_left_out():
    weight = torch.randn(4, 4, requires_grad=True)
    loss = (torch.randn(4, 4) @ weight).sum() + weight.sum()
    sums = Cancellations(walk(loss))
    loss.backward()
    assert sums.zeros() == {} or not sums.zeros()[id(weight)].any()


def test_the_hooks_change_no_bit_and_can_be_removed():
    net = CANCELLING[0]()
    net.loss(net.model).backward()
    plain = [p.grad for p in net.model.parameters()]
    net.model.zero_grad()
    loss = net.loss(net.model)
    sums = Cancellations(walk(loss))
    sums.remove()
    assert sums.zeros() == {}
    Cancellations(walk(loss))
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, net.model.parameters(), strict=True))
