"""Matrix products and convolutions, forward and both gradients, bit for bit against the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.emulation.oracle import assert_equal, emulated_product, product, spread

from gradscale.emulation import DirectionFormats, emulate
from gradscale.formats import FloatFormat

BIAS = spread(5)
PRODUCTS = {
    "mm": (torch.mm, (4, 6), (6, 5)),
    "matmul 3d by 2d": (torch.matmul, (2, 4, 6), (6, 5)),
    "matmul 2d by 3d": (torch.matmul, (4, 6), (2, 6, 5)),
    "matmul 4d": (torch.matmul, (2, 3, 4, 6), (2, 3, 6, 5)),
    "operator": (lambda a, b: a @ b.t(), (4, 6), (5, 6)),
    "transposed first": (lambda a, b: a.t() @ b, (6, 4), (6, 5)),
    "linear": (F.linear, (3, 4, 6), (5, 6)),
    "linear with bias": (lambda a, b: F.linear(a, b, BIAS), (3, 4, 6), (5, 6)),
    "addmm": (lambda a, b: torch.addmm(BIAS, a, b, beta=0.5, alpha=2), (4, 6), (6, 5)),
    "bmm": (torch.bmm, (2, 4, 6), (2, 6, 5)),
    "baddbmm": (lambda a, b: torch.baddbmm(BIAS, a, b, alpha=0.5), (2, 4, 6), (2, 6, 5)),
    "addbmm": (lambda a, b: torch.addbmm(BIAS, a, b), (2, 4, 6), (2, 6, 5)),
    "dot": (torch.dot, (6,), (6,)),
    "mv": (torch.mv, (4, 6), (6,)),
    "addmv": (lambda a, b: torch.addmv(BIAS, a, b), (5, 6), (6,)),
    "einsum": (lambda a, b: torch.einsum("bij,kj->bik", a, b), (2, 4, 6), (5, 6)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=2), (3, 4, 6), (4, 6, 5)),
    "square": (torch.mm, (6, 6), (6, 6)),
    "conv1d": (F.conv1d, (2, 3, 9), (4, 3, 3)),
    "conv2d": (lambda a, b: F.conv2d(a, b, padding=1, stride=2), (2, 3, 6, 6), (4, 3, 3, 3)),
    "conv2d with bias": (lambda a, b: F.conv2d(a, b, BIAS), (2, 3, 6, 6), (5, 3, 3, 3)),
    "grouped": (lambda a, b: F.conv2d(a, b, groups=2), (2, 4, 6, 6), (4, 2, 3, 3)),
    "dilated": (lambda a, b: F.conv2d(a, b, dilation=2), (2, 3, 6, 6), (4, 3, 3, 3)),
    "conv3d": (F.conv3d, (1, 2, 4, 4, 4), (3, 2, 2, 2, 2)),
    "transposed 1d": (F.conv_transpose1d, (2, 3, 5), (3, 4, 3)),
    "transposed 2d": (lambda a, b: F.conv_transpose2d(a, b, stride=2), (2, 3, 4, 4), (3, 4, 2, 2)),
    "transposed 3d": (F.conv_transpose3d, (1, 2, 3, 3, 3), (2, 3, 2, 2, 2)),
}  # fmt: skip
WITH_BIAS = ("linear with bias", "addmm", "baddbmm", "addbmm", "addmv", "conv2d with bias")
# A float32 bias cannot meet float16 operands outside autocast.
CASES = [(name, torch.float32) for name in PRODUCTS]
CASES += [(name, torch.float16) for name in PRODUCTS if name not in WITH_BIAS]
FORMATS = {
    "fp16": ("fp16", "fp16", None),
    "bf16": ("bf16", "bf16", None),
    "e5m2 backward": ("fp16", "e5m2", None),
    "e4m3 and e5m2": ("e4m3", "e5m2", None),
    "e4m3 and e5m2 between bf16": ("e4m3", "e5m2", "bf16"),
    "any": (FloatFormat(6, 9), FloatFormat(3, 2, "saturate"), None),
}


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_product_and_its_gradients_equal_the_oracle(
    name: str, formats: str, dtype: torch.dtype
) -> None:
    function, first, second = PRODUCTS[name]
    forward, backward, between = FORMATS[formats]
    a, b = spread(*first).to(dtype), spread(*second).to(dtype)
    grad = spread(*function(a.float(), b.float()).shape).to(dtype)
    wanted = product(function, a, b, grad, DirectionFormats.of(forward, backward, between))
    with emulate(forward, backward, between=between):
        found = emulated_product(function, a, b, grad)
    assert_equal(found, wanted)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_random_shapes_and_layouts_equal_the_oracle(data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    flips = data.draw(st.tuples(st.booleans(), st.booleans()))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    shapes = sizes[:2], sizes[1:]
    a, b = (
        spread(*reversed(shape)).t() if flip else spread(*shape)
        for shape, flip in zip(shapes, flips, strict=True)
    )
    grad = spread(sizes[0], sizes[2], octaves=40)
    wanted = product(torch.mm, a, b, grad, DirectionFormats.of("fp16", "e5m2"))
    with emulate("fp16", "e5m2"):
        found = emulated_product(torch.mm, a, b, grad)
    assert_equal(found, wanted)


def test_a_result_beyond_float16_is_infinite_and_a_tiny_one_zero() -> None:
    a = torch.tensor([[300.0], [2.0**-14]])
    with emulate():
        found = a @ a.t()
    assert found.tolist() == [[torch.inf, 300 * 2.0**-14], [300 * 2.0**-14, 0.0]]


def test_sums_accumulate_in_float32_and_are_rounded_once() -> None:
    ones = torch.ones(1, 4097, dtype=torch.float16)
    with emulate():
        assert (ones @ ones.t()).item() == 4096.0
    # In float16 itself the sum would stop at 2048.


def test_the_bias_gradient_is_the_sum_of_the_gradient_as_it_stands() -> None:
    grad = spread(2, 4, 4, 4)
    bias = torch.zeros(4, requires_grad=True)
    with emulate("fp16", "e5m2"):
        output = F.conv2d(spread(2, 3, 6, 6), spread(4, 3, 3, 3).requires_grad_(), bias)
        output.backward(grad)
    assert torch.equal(bias.grad, FloatFormat.of("fp16").round(grad.sum((0, 2, 3))))


@pytest.mark.parametrize("name", ["mm", "addmm", "addmm_", "bmm", "baddbmm", "addmv", "dot"])
def test_in_place_and_out_variants_round_too(name: str) -> None:
    a, b, c = spread(3, 3), spread(3, 3), spread(3, 3)
    batched = a[None], b[None]
    calls = {
        "mm": lambda: torch.mm(a, b, out=torch.empty(0)),
        "addmm": lambda: torch.addmm(c, a, b, out=torch.empty(3, 3)),
        "addmm_": lambda: c.clone().addmm_(a, b),
        "bmm": lambda: torch.bmm(*batched, out=torch.empty(1, 3, 3))[0],
        "baddbmm": lambda: c[None].clone().baddbmm_(*batched)[0],
        "addmv": lambda: torch.addmv(c[0], a, b[0], out=torch.empty(3)),
        "dot": lambda: torch.dot(a[0], b[0], out=torch.empty(())),
    }
    half = FloatFormat.of("fp16").round
    x, y = half(a), half(b)
    wanted = {
        "mm": x @ y, "addmm": torch.addmm(c, x, y), "addmm_": torch.addmm(c, x, y), "bmm": x @ y,
        "baddbmm": torch.addmm(c, x, y), "addmv": torch.addmv(c[0], x, y[0]),
        "dot": torch.dot(x[0], y[0]),
    }  # fmt: skip
    with emulate():
        found = calls[name]()
    assert torch.equal(found, half(wanted[name]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    a = (spread(3, 3) * 100).to(dtype)
    with emulate():
        assert torch.equal(a @ a, a @ a)
        inside = a @ a
    assert torch.equal(inside, a @ a)


def test_products_in_inference_mode_round_too() -> None:
    layer = torch.nn.Linear(6, 5)
    x = spread(3, 6)
    with emulate("e4m3", "e5m2"):
        wanted = layer(x).detach()
        with torch.inference_mode():
            found = layer(x)
    assert not torch.equal(layer(x), wanted)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["matmul broadcast", "conv_tbc"])
def test_gradients_that_torch_adds_from_several_products_round_each_of_them(name: str) -> None:
    function, first, second = {
        "matmul broadcast": (torch.matmul, (2, 1, 4, 6), (3, 6, 5)),
        "conv_tbc": (lambda a, b: torch.conv_tbc(a, b, BIAS, 1), (7, 2, 3), (3, 3, 5)),
    }[name]
    a, b = spread(*first), spread(*second)
    grad = spread(*function(a, b).shape)
    wanted = product(function, a, b, grad, DirectionFormats.of("fp16", "e5m2"))
    with emulate("fp16", "e5m2"):
        found = emulated_product(function, a, b, grad)
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=4e-3, atol=2.0**-8 * float(other.abs().max()))


def test_operands_of_different_dtypes_are_refused_as_by_torch() -> None:
    half, single = torch.ones(2, 2).half(), torch.ones(2, 2)
    with emulate():
        for call in (
            lambda: half @ single,
            lambda: torch.addmm(single, half, half),
            lambda: F.conv1d(half[None], single[None]),
            lambda: F.scaled_dot_product_attention(half[None], single[None], half[None]),
        ):
            with pytest.raises(RuntimeError, match=r"dtype|type"):
                call()
