"""Attention against a plain written-out oracle and against torch's float32 attention."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.emulation.oracle import assert_equal, spread
from torch import Tensor

from gradscale.emulation import DirectionFormats, emulate

SHAPE = 2, 4, 6, 8
BOOLEAN = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.3
BOOLEAN[:, 0] = True
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.7},
    "boolean mask": {"attn_mask": BOOLEAN},
    "additive mask": {"attn_mask": torch.linspace(-2, 2, 36).reshape(6, 6)},
    "grouped": {"enable_gqa": True},
}
FORMATS = {"fp16": ("fp16", "fp16"), "bf16": ("bf16", "bf16"), "e5m2": ("fp16", "e5m2"),
           "e4m3": ("e4m3", "e5m2")}  # fmt: skip


def operands(options: dict[str, object], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    heads = 2 if "enable_gqa" in options else SHAPE[1]
    shapes = SHAPE, (SHAPE[0], heads, *SHAPE[2:]), (SHAPE[0], heads, *SHAPE[2:])
    return [spread(*shape, octaves=3).to(dtype).requires_grad_() for shape in shapes]


def oracle(
    qkv: list[Tensor], grad: Tensor, options: dict, precision: DirectionFormats
) -> list[Tensor]:
    """Head by head, as the formulas stand in the docstring."""
    forward, backward = precision.forward.round, precision.backward.round
    q, k, v = (forward(x.detach().float()) for x in qkv)
    group = q.shape[1] // k.shape[1]
    output = torch.zeros(SHAPE)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for n in range(SHAPE[0]):
        for h in range(SHAPE[1]):
            one = n, h // group
            scale = options.get("scale", 1 / math.sqrt(SHAPE[-1]))
            scores = scale * (q[n, h] @ k[one].t())
            mask = options.get("attn_mask")
            if options.get("is_causal"):
                mask = torch.ones(6, 6).tril().bool()
            if mask is not None:
                scores = (
                    scores.masked_fill(~mask, -torch.inf)
                    if mask.dtype == torch.bool
                    else scores + mask
                )
            p = scores.softmax(-1)
            output[n, h] = forward(p) @ v[one]
            g = backward(grad[n, h].float())
            dv[one] += forward(p).t() @ g
            dp = g @ v[one].t()
            ds = backward(p * (dp - (dp * p).sum(-1, keepdim=True)))
            dq[n, h] = scale * (ds @ k[one])
            dk[one] += scale * (ds.t() @ q[n, h])
    results = (
        precision.forward_result.round(output),
        *map(precision.backward_result.round, (dq, dk, dv)),
    )
    return [x.to(qkv[0].dtype) for x in results]


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_and_its_gradients_follow_the_formulas(name: str, formats: str) -> None:
    options, precision = OPTIONS[name], DirectionFormats.of(*FORMATS[formats])
    qkv, grad = operands(options), spread(*SHAPE)
    wanted = oracle(qkv, grad, options, precision)
    with emulate(*FORMATS[formats]):
        output = F.scaled_dot_product_attention(*qkv, **options)
        found = [output.detach(), *torch.autograd.grad(output, qkv, grad)]
    for one, other in zip(found, wanted, strict=True):
        # Equal but for the order of float32 sums, which may tip a rounding to the other neighbor.
        unequal = (one != other).float().mean()
        assert unequal < 0.03
        width = precision.forward.mantissa_bits
        torch.testing.assert_close(one, other, rtol=2.0**-width, atol=2.0**-width)


@pytest.mark.parametrize("name", OPTIONS)
def test_wide_formats_give_torchs_own_attention(name: str) -> None:
    options = OPTIONS[name]
    qkv, grad = operands(options), spread(*SHAPE)
    output = F.scaled_dot_product_attention(*qkv, **options)
    wanted = output, *torch.autograd.grad(output, qkv, grad)
    with emulate("fp32", "fp32"):
        output = F.scaled_dot_product_attention(*qkv, **options)
        found = output, *torch.autograd.grad(output, qkv, grad)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-4)


def test_a_floating_mask_receives_its_gradient() -> None:
    qkv, grad = operands({}), spread(*SHAPE)
    mask = torch.randn(1, 1, 6, 6, requires_grad=True)
    output = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    (wanted,) = torch.autograd.grad(output, mask, grad)
    with emulate():
        output = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        (found,) = torch.autograd.grad(output, mask, grad)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_a_row_in_which_everything_is_masked_gives_zeros_and_no_gradient() -> None:
    qkv = operands({})
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    with emulate():
        output = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        (dq,) = torch.autograd.grad(output.sum(), qkv[0])
    assert (output[:, :, 2] == 0).all() and (dq[:, :, 2] == 0).all() and dq.isfinite().all()


def test_dropout_keeps_the_mean_and_its_gradient_the_same_elements() -> None:
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 2, 4, requires_grad=True)
    k, v = torch.zeros(1, 1, 4000, 4), torch.ones(1, 1, 4000, 4, requires_grad=True)
    with emulate("fp32", "fp32"):
        output = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        (dv,) = torch.autograd.grad(output[..., :1, 0].sum(), v)
    assert output.mean().item() == pytest.approx(1.0, abs=0.1)
    kept = dv[0, 0, :, 0]
    assert torch.equal(kept.unique(), torch.tensor([0.0, 2 / 4000]))
    assert kept.sum().item() == pytest.approx(output[0, 0, 0, 0].item(), rel=1e-4)


def test_scores_beyond_float16_do_not_overflow() -> None:
    q = torch.full((1, 1, 2, 4), 300.0, dtype=torch.float16)
    with emulate():
        assert F.scaled_dot_product_attention(q, q, q, scale=1.0).isfinite().all()


def test_inference_mode_gives_the_same() -> None:
    qkv = operands({}, torch.float16)
    with emulate():
        wanted = F.scaled_dot_product_attention(*qkv, is_causal=True)
        with torch.inference_mode():
            found = F.scaled_dot_product_attention(*qkv, is_causal=True)
    assert_equal((found,), (wanted.detach(),))


def test_a_mask_with_is_causal_is_refused() -> None:
    qkv = operands({})
    with emulate(), pytest.raises(RuntimeError, match="takes one of the two"):
        F.scaled_dot_product_attention(*qkv, attn_mask=BOOLEAN, is_causal=True)


def test_double_precision_attention_is_torchs_own() -> None:
    qkv = operands({}, torch.float64)
    wanted = F.scaled_dot_product_attention(*qkv)
    with emulate():
        assert torch.equal(F.scaled_dot_product_attention(*qkv), wanted)


def test_a_backward_pass_started_inside_autocast_gives_the_same_bits() -> None:
    qkv, grad = [x.half().requires_grad_() for x in operands({})], spread(*SHAPE).half()
    with emulate():
        with torch.autocast("cpu", torch.float16):
            output = F.scaled_dot_product_attention(*qkv)
            inside = torch.autograd.grad(output, qkv, grad, retain_graph=True)
        outside = torch.autograd.grad(output, qkv, grad)
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)
