"""What counts as lost."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gradscale.formats import FloatFormat
from gradscale.training import lost
from gradscale.training.lost import Lost

HALF = FloatFormat.of("fp16")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_a_gradient_rounded_to_float16_loses_what_the_format_flushes():
    true = torch.ldexp(torch.ones(61), torch.arange(-45, 16))
    found = lost.compare({"x": true}, {"x": true.half()}, HALF)
    assert found == Lost(nonzero=61, flushed=int((true <= HALF.flush_threshold).sum()))


def test_exact_zeros_of_the_true_gradient_are_not_lost():
    found = lost.compare({"x": torch.zeros(5)}, {"x": torch.zeros(5)}, HALF)
    assert found == Lost() and found.share is None


def test_a_scale_that_saves_a_gradient_makes_it_not_lost():
    true = torch.full((3,), 2.0**-30)
    assert lost.compare({"x": true}, {"x": true.half()}, HALF).share == 1
    assert lost.compare({"x": true}, {"x": (true * 2**16).half()}, HALF).share == 0


def test_eight_bit_products_flush_what_float16_still_holds():
    true = torch.full((3,), 2.0**-20)
    assert lost.compare({"x": true}, {"x": true.half()}, FloatFormat.of("e5m2")).share == 1


def test_tensors_that_overflowed_are_left_out():
    bad = torch.tensor([1.0, torch.inf])
    assert lost.compare({"x": torch.ones(2)}, {"x": bad}, HALF) == Lost()
    assert lost.compare({"x": bad}, {"x": torch.ones(2)}, HALF) == Lost()


def test_the_reference_leaves_the_model_alone():
    model = net()
    x = torch.randn(6, 4)
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    lost.reference(model, lambda twin: twin(x).square().mean())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_the_same_pass_has_the_reference_as_its_gradients():
    model = net()
    x = torch.randn(6, 4)
    true = lost.reference(model, lambda twin: twin(x).square().mean())
    with lost.capturing(model) as found:
        model(x).square().mean().backward()
    found |= lost.parameter_gradients(model)
    assert true.keys() == found.keys()
    assert len(true) == 4 + 6, "four modules, six parameters"
    assert all(torch.equal(true[name], found[name]) for name in true)


def test_capturing_takes_its_hooks_away():
    model = net()
    with lost.capturing(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())
