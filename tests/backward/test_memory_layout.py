"""Gradients that are expanded, or have gaps: their sums keep their order, so their bits, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assertions import assert_same_bits, assert_same_gradients
from expanded_gradients import EXPANDING, Gain
from gradscale.backward import BackwardGraph, ScalePlan, rescale
from gradscale.backward.multiply import multiply_gradient

BEHIND: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(6),
    "layer norm": lambda: nn.LayerNorm(7),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "conv": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "linear": lambda: nn.Linear(7, 7),
    "gain": Gain,
}

# Each makes its producer receive a gradient that is expanded or has gaps, of all kinds of elements.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    **EXPANDING,
    "mean": lambda y: y.mean(),
    "expanded columns": lambda y: y.sum(-1).sin().mean(),
    "expanded maps": lambda y: y.sum((2, 3)).sin().sum(),
    "averaged maps": lambda y: y.mean((2, 3)).sin().sum(),
    "behind a sum of two": lambda y: (y + y.roll(1)).sum() / 3,
    "channels of a cat": lambda y: torch.cat([y, y.detach()], 1).sin().sum(),
    "columns of a cat": lambda y: torch.cat([y.detach(), y], -1).sin().sum(),
    "every other of a stack": lambda y: torch.stack([y, y.detach()], -1).sin().sum(),
    "expanded part of a cat": lambda y: torch.cat([y, y.detach()], 1).sum(0).sin().sum(),
}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return [None if grad is None else grad.detach().clone() for grad in found]


def planned(loss: Tensor, seed: int) -> int:
    graph = BackwardGraph.of(loss)
    return rescale(graph, ScalePlan.random(graph, torch.Generator().manual_seed(seed))).edges


@settings(max_examples=150, deadline=None)
@given(
    first=st.sampled_from(sorted(BEHIND)),
    last=st.sampled_from(sorted(BEHIND)),
    loss=st.sampled_from(sorted(LOSSES)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    channels_last=st.booleans(),
    size=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_what_stands_right_behind_a_loss_keeps_its_bits(
    first: str, last: str, loss: str, dtype: torch.dtype, channels_last: bool, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(BEHIND[first](), BEHIND[last]()).to(dtype)
    x = torch.randn(size, 6, 5, 7, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()  # or torch's own group norm reads address 0 in its backward, channels last
    expected = gradients(model, LOSSES[loss](model(x)))
    for number in range(3):
        value = LOSSES[loss](model(x))
        assert planned(value, seed + number) > 0
        assert_same_gradients(gradients(model, value), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("behind", BEHIND)
def test_every_loss_is_met_by_every_kind(behind: str, loss: str) -> None:
    torch.manual_seed(0)
    model, x = BEHIND[behind](), torch.randn(4, 6, 5, 7)
    expected = gradients(model, LOSSES[loss](model(x)))
    for seed in range(4):
        value = LOSSES[loss](model(x))
        planned(value, seed)
        assert_same_gradients(gradients(model, value), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_a_recorded_pass_keeps_its_bits_and_can_be_differentiated(loss: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(6), Gain(), nn.Tanh(), Gain())
    x = torch.randn(4, 6, 5, 7)

    def twice(seed: int | None) -> tuple[list[Tensor | None], list[Tensor | None]]:
        value = LOSSES[loss](model(x))
        if seed is not None:
            assert planned(value, seed) > 0
        value.backward(create_graph=True)
        first = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        penalty = torch.stack([grad.square().sum() for grad in first if grad is not None]).sum()
        return [grad.detach() for grad in first], gradients(model, penalty)

    expected = twice(None)
    for seed in range(3):
        found = twice(seed)
        assert_same_gradients(found[0], expected[0])
        # What autograd records is a plain product, whose own gradient has a layout of its own.
        for one, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_finds_nothing_in_the_gaps() -> None:
    torch.manual_seed(0)
    model, x = nn.BatchNorm2d(6), torch.randn(4, 6, 5, 7)
    for loss in LOSSES.values():
        expected = gradients(model, loss(model(x)))
        with torch.autograd.detect_anomaly(check_nan=True):
            value = loss(model(x))
            planned(value, 1)
            assert_same_gradients(gradients(model, value), expected)


def test_a_gradient_given_expanded_is_multiplied_expanded() -> None:
    torch.manual_seed(0)
    model, x = nn.BatchNorm2d(6), torch.randn(4, 6, 5, 7)
    given = torch.tensor(0.3).expand(4, 6, 5, 7)
    model(x).backward(given)
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    for exponent in (-3, 5):
        y = model(x)
        graph = BackwardGraph.of(y)
        with rescale(graph, ScalePlan.of(graph, {graph.roots[0]: exponent})):
            y.backward(given)
        assert_same_gradients([parameter.grad for parameter in model.parameters()], expected)
        model.zero_grad()


SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "all in one": lambda x: x[:1, :1, :1, :1].expand(2, 3, 4, 5),
    "one row": lambda x: x[:1].expand(7, -1, -1, -1),
    "one channel, permuted": lambda x: x[:, :1].expand(-1, 9, -1, -1).permute(3, 1, 0, 2),
    "narrowed": lambda x: x[:, 1:3],
    "narrowed columns": lambda x: x[..., 1:3],
    "steps": lambda x: x[:, :, ::2, ::3],
    "narrowed and expanded": lambda x: x[:, 1:3, :1].expand(-1, -1, 6, -1),
    "single": lambda x: x[:1, :, :1].permute(1, 3, 0, 2),
    "empty": lambda x: x[:0].expand(0, 3, 4, 5),
    "overlapping": lambda x: x.as_strided((3, 4), (1, 1)),
}


@pytest.mark.parametrize("kind", SHAPED)
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64],
    ids=str,
)
def test_a_product_touches_and_overlaps_where_its_gradient_does(
    kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    grad = SHAPED[kind](torch.randn(2, 3, 4, 5, dtype=dtype))
    before = grad.clone()
    found = multiply_gradient(grad, torch.tensor(8.0))
    pairs = torch.view_as_real if dtype.is_complex else torch.Tensor.view_as
    if dtype.is_complex:
        assert_same_bits(pairs(found.contiguous()), pairs((grad * 8).contiguous()))
    else:
        assert_same_bits(found, grad * 8)
    assert torch.equal(grad, before)
    if kind != "overlapping":
        assert [not s for s in found.stride()] == [not s for s in grad.stride()]
        assert touching(found) == touching(grad)
    assert found.untyped_storage().nbytes() <= 4 * grad.numel() * grad.element_size()


def touching(x: Tensor) -> list[tuple[int, bool]]:
    """The dimensions in the order in which they lie in memory, and which touch the one before."""
    dims = [(s, n, d) for d, (s, n) in enumerate(zip(x.stride(), x.shape, strict=True)) if n > 1]
    dims = sorted((s, n, d) for s, n, d in dims if s)
    ends = [1, *(s * n for s, n, _ in dims)]
    return [(d, s == end) for (s, _, d), end in zip(dims, ends, strict=False)]


@pytest.mark.parametrize("kind", sorted(set(SHAPED) - {"overlapping"}))
def test_a_product_in_its_layout_is_differentiated_right(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    by = torch.tensor(8.0)
    torch.autograd.gradcheck(lambda x: multiply_gradient(SHAPED[kind](x), by), (x,))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_and_subclassed_gradients_are_multiplied_as_before() -> None:
    class Own(Tensor):
        pass

    by, parts = torch.tensor(4.0), [torch.ones(2, 3), torch.ones(1, 3)]
    own = torch.ones(1).expand(3).as_subclass(Own)
    assert type(multiply_gradient(own, by)) is Own
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        for found in multiply_gradient(nested, by).unbind():
            assert torch.equal(found, torch.full_like(found, 4.0))
