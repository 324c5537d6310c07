"""Normalisation computes in float32 and keeps half precision: the same bits in half the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscale import half_precision
from gradscale.half.norms import _stack

LAYERS = {
    "LayerNorm": (lambda: nn.LayerNorm(8), (4, 8)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), (4, 8, 5)),
    "RMSNorm": (lambda: nn.RMSNorm(8), (4, 8)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(8, affine=True), (4, 8, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), (4, 8)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(8), (4, 8, 5, 5)),
}


def converted(layer):
    """A model around the layer; the layer itself, with its hooks."""
    model = nn.Sequential(layer, nn.Linear(1, 1))
    half_precision(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return model[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradients_are_those_of_a_float32_copy(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, plain = converted(build()), build()
    x = torch.randn(shape).half()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = layer(one)
    theirs = plain(other.float()).half()
    upstream = torch.randn(shape).half()
    ours.backward(upstream)
    theirs.backward(upstream)
    assert ours.dtype == torch.float16
    exact = not isinstance(layer, nn.modules.batchnorm._BatchNorm)  # another kernel sums otherwise
    pairs = [(ours, theirs), (one.grad, other.grad), (layer.weight.grad, plain.weight.grad)]
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def bytes_saved(run):
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        found[storage._cdata] = (storage.nbytes(), tensor.dtype, tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return result, [size for size, _, _ in found.values()]


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"RMSNorm"}))  # a CPU composes it of several
def test_what_is_kept_of_the_input_has_two_bytes_an_element(name):
    build, shape = LAYERS[name]
    layer = converted(build())
    x = torch.randn(64, *shape[1:]).half().requires_grad_()
    out, sizes = bytes_saved(lambda: layer(x))
    assert 2 * x.numel() in sizes and 4 * x.numel() not in sizes
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_keep_nothing_and_give_the_same_gradients(reentrant):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.LayerNorm(8))
    model = nn.Sequential(body, nn.Linear(8, 1))
    half_precision(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(4, 8).half().requires_grad_()
    gradients = []
    for run in (lambda: body(x), lambda: checkpoint(body, x, use_reentrant=reentrant)):
        x.grad = None
        model.zero_grad()
        run().float().square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in body.parameters())])
    assert all(map(torch.equal, *gradients))
    assert _stack() == []


def test_an_error_inside_the_layer_leaves_no_hook_behind():
    layer = converted(nn.LayerNorm(8))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            layer(torch.ones(2, 7).half().requires_grad_())
    assert _stack() == []
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_an_input_changed_in_place_afterwards_is_noticed():
    layer = converted(nn.LayerNorm(8))
    x = torch.randn(2, 8).half().requires_grad_() * 1
    out = layer(x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*x.clone"):
        out.sum().backward()


def test_double_backward_goes_through():
    layer = converted(nn.LayerNorm(8))
    x = torch.randn(2, 8).half().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
    slope.float().square().sum().backward()
    assert layer.weight.grad is not None and torch.isfinite(x.grad).all()
