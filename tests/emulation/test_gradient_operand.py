"""The gradient operand of a backward product is rounded to 8 bits, the saved one never."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from tests.emulation.oracle import spread
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gradscale.emulation import emulate
from gradscale.formats import FloatFormat

E5M2 = FloatFormat.of("e5m2")
aten = torch.ops.aten
OPERANDS = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2)}


class Watch(TorchDispatchMode):
    """Sees the float32 products that the emulation runs, with their rounded operands."""

    def __init__(self) -> None:
        super().__init__()
        self.backward: list[tuple[bool, bool]] = []
        self.forward: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in OPERANDS:
            on_grid = tuple(torch.equal(args[i], E5M2.round(args[i])) for i in OPERANDS[func])
            node = torch._C._current_autograd_node()
            (self.forward if node is None else self.backward).append(on_grid)
        elif func is aten.convolution_backward.default:
            grad, *saved = (torch.equal(x, E5M2.round(x)) for x in args[:3])
            self.backward.append((grad, any(saved)))
        return func(*args, **(kwargs or {}))


def watched(make_loss, *, autocast: bool = True) -> Watch:
    with Watch() as watch, emulate("fp16", "e5m2"):
        with torch.autocast("cpu", torch.float16) if autocast else nullcontext():
            loss = make_loss()
        loss.backward()
    return watch


def sum_of(tensor: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient is no 8-bit number."""
    torch.manual_seed(1)
    return (tensor.float() * torch.randn(tensor.shape)).sum()


W = nn.Parameter(spread(8, 8, octaves=2))
X = spread(4, 8, octaves=2)
BATCH = spread(3, 8, 8, octaves=2)


def tied() -> torch.Tensor:
    embedding = nn.Embedding(12, 8)
    return sum_of(embedding(torch.arange(12)).tanh() @ embedding.weight.t())


def attention_layer() -> torch.Tensor:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    return sum_of(layer(BATCH, BATCH, BATCH)[0])


def checkpointed(*, reentrant: bool) -> torch.Tensor:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x = X.clone().requires_grad_()
    return sum_of(checkpoint(layers, x, use_reentrant=reentrant))


LOSSES = {
    "linear": lambda: sum_of(F.linear(X, W)),
    "transposed weight": lambda: sum_of(X @ W.t()),
    "transposed input": lambda: sum_of(BATCH[0].t().clone().requires_grad_().t() @ W),
    "square by itself": lambda: sum_of(W @ W),
    "square by its transpose": lambda: sum_of(W @ W.t()),
    "weight used twice": lambda: sum_of(F.linear(F.linear(X, W).tanh(), W)),
    "tied embedding": tied,
    "bmm": lambda: sum_of(torch.bmm(BATCH, BATCH.clone().requires_grad_())),
    "einsum": lambda: sum_of(torch.einsum("bij,jk->bik", BATCH, W)),
    "attention layer": attention_layer,
    "lstm": lambda: sum_of(nn.LSTM(8, 8, num_layers=2, bidirectional=True)(BATCH)[0]),
    "gru": lambda: sum_of(nn.GRU(8, 8)(BATCH)[0]),
    "rnn": lambda: sum_of(nn.RNN(8, 8)(BATCH)[0]),
    "gru cell": lambda: sum_of(nn.GRUCell(8, 8)(X)),
    "conv": lambda: sum_of(nn.Conv2d(3, 4, 3)(BATCH[None])),
    "deconv": lambda: sum_of(nn.ConvTranspose2d(3, 4, 3)(BATCH[None])),
    "checkpoint": lambda: checkpointed(reentrant=False),
    "reentrant checkpoint": lambda: checkpointed(reentrant=True),
}


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_one_operand_of_every_backward_product_is_on_the_grid_and_the_other_not(
    name: str, autocast: bool
) -> None:
    watch = watched(LOSSES[name], autocast=autocast)
    products = watch.backward
    if "checkpoint" in name:
        # What is recomputed inside the backward pass is a forward pass: no operand on the grid.
        # Non-reentrant checkpointing stops before a product whose result nobody needs.
        assert products.count((False, False)) == (2 if "reentrant" in name else 1)
        products = [one for one in products if one != (False, False)]
    assert products
    assert watch.forward or "conv" in name
    zero_states = name in ("lstm", "gru", "rnn", "gru cell")
    for on_grid in products:
        assert any(on_grid), products
        assert zero_states or not all(on_grid), products
    assert zero_states or not any(any(one) for one in watch.forward)


@pytest.mark.parametrize("name", LOSSES)
def test_the_result_of_a_backward_product_stays_in_the_wider_format(name: str) -> None:
    half = FloatFormat.of("fp16")
    torch.manual_seed(3)
    with emulate("fp16", "e5m2"):
        loss = sum_of(F.linear(F.linear(X, W), W))
        (grad,) = torch.autograd.grad(sum_of(F.linear(X, W)), W)
    del loss
    assert torch.equal(grad, half.round(grad)) and not torch.equal(grad, E5M2.round(grad))


def test_8_bit_rounding_sees_the_gradient_at_the_scale_that_it_carries() -> None:
    x, w = torch.eye(2), nn.Parameter(torch.eye(2))
    grad = torch.full((2, 2), 2.0**-20)
    for scale, kept in ((1.0, 0.0), (2.0**8, 2.0**-12)):
        with emulate("fp16", "e5m2"):
            (found,) = torch.autograd.grad(x @ w, w, grad * scale)
        assert found.tolist() == [[kept] * 2] * 2


def test_a_forward_pass_outside_is_no_obstacle() -> None:
    output = F.linear(F.linear(X, W).tanh(), W)
    with emulate("fp16", "e5m2"):
        (found,) = torch.autograd.grad(sum_of(output), W)
    assert found.isfinite().all()
    with emulate("fp16", "fp16"):
        (wider,) = torch.autograd.grad(sum_of(F.linear(F.linear(X, W).tanh(), W)), W)
    assert not torch.equal(found, wider)


def test_what_cannot_be_told_apart_is_an_error() -> None:
    output = X @ W
    grad = spread(4, 8)
    with emulate("fp16", "e5m2"), pytest.raises(RuntimeError, match="cannot tell which operand"):
        output.backward(grad)
    with emulate("fp16", "fp16"):
        (X @ W).backward(grad)


def test_double_backward_keeps_the_roles() -> None:
    x, w = X.clone().requires_grad_(), W.detach().clone().requires_grad_()
    with Watch() as watch, emulate("fp16", "e5m2"):
        (grad,) = torch.autograd.grad(sum_of((x @ w).tanh()), x, create_graph=True)
        first = len(watch.backward)
        sum_of(grad.square()).backward()
    assert watch.backward[:first] == [(True, False)]
    assert all(any(on_grid) for on_grid in watch.backward[first:])
    assert w.grad is not None and w.grad.isfinite().all()


def test_saved_tensors_may_be_packed() -> None:
    def loss() -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            return sum_of(F.linear(F.linear(X, W).tanh(), W))

    watch = watched(loss)
    assert len(watch.backward) == 3
    assert all(sorted(on_grid) == [False, True] for on_grid in watch.backward)


def test_recomputation_under_no_grad_is_a_forward_pass() -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        # Detached: torch 2.10's autocast would hand the cast weights out again, without a gradient.
        with torch.no_grad():
            target = x.detach() @ W.detach()
        return (x @ W) * target

    watch = watched(
        lambda: sum_of(checkpoint(block, X.clone().requires_grad_(), use_reentrant=False))
    )
    assert watch.backward.count((False, False)) == 2
    assert len([one for one in watch.backward if one != (False, False)]) == 2


def test_nothing_that_was_an_operand_is_kept_alive() -> None:
    import weakref

    x = torch.randn(4, 8)
    alive = weakref.ref(x.untyped_storage())
    with emulate("fp16", "e5m2"):
        x @ W.detach()
        del x
        assert alive() is None
        for _ in range(1100):
            torch.randn(1, 8) @ W.detach()
        assert (X @ W.detach()).isfinite().all()
