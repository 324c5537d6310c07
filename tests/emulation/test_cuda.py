"""Where there is a GPU: the emulation against the real kernels, and the engine's own threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.emulation.oracle import emulated_product, product, spread
from torch import nn

from gradscale.emulation import DirectionFormats, emulate

pytestmark = pytest.mark.cuda


def real(function, a, b, grad):
    return emulated_product(function, a.cuda(), b.cuda(), grad.cuda())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mm", "bmm", "conv2d"])
def test_the_cpu_emulation_agrees_with_the_real_kernels(name: str, dtype: torch.dtype) -> None:
    function, first, second = {
        "mm": (torch.mm, (32, 64), (64, 16)),
        "bmm": (torch.bmm, (4, 16, 64), (4, 64, 16)),
        "conv2d": (F.conv2d, (2, 8, 10, 10), (16, 8, 3, 3)),
    }[name]
    a, b = spread(*first, octaves=4).to(dtype), spread(*second, octaves=4).to(dtype)
    grad = spread(*function(a.float(), b.float()).shape, octaves=4).to(dtype)
    wanted = real(function, a, b, grad)
    with emulate(dtype, dtype):
        found = emulated_product(function, a, b, grad)
    step = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            one.float(), other.cpu().float(), rtol=step, atol=step * float(one.abs().max()) / 8
        )


@pytest.mark.parametrize("backward", ["fp16", "e5m2", "e4m3"])
def test_the_engines_own_threads_round_the_gradient_operand(backward: str) -> None:
    a, b, grad = (spread(16, 16, octaves=6).half() for _ in range(3))
    wanted = product(torch.mm, a, b, grad, DirectionFormats.of("fp16", backward))
    with emulate("fp16", backward):
        found = real(torch.mm, a, b, grad)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=2.0**-9, atol=2.0**-6)


def test_recurrent_layers_and_attention_run_with_an_8_bit_backward_pass() -> None:
    lstm, attention = nn.LSTM(16, 16).cuda(), nn.MultiheadAttention(16, 2).cuda()
    x = torch.randn(5, 3, 16, device="cuda")
    with emulate("fp16", "e5m2"):
        with torch.autocast("cuda", torch.float16):
            y = lstm(x)[0]
            loss = attention(y, y, y)[0].float().square().mean()
        (loss * 1024).backward()
    assert all(p.grad.isfinite().all() for p in lstm.parameters())
