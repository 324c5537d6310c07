"""The context itself: what it leaves, nesting, threads, autocast, errors."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from tests.emulation.oracle import spread
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from gradscale.emulation import emulate, emulating
from gradscale.emulation.overrides import overrides
from gradscale.formats import FloatFormat

A, B = spread(4, 6), spread(6, 5)
half = FloatFormat.of("fp16").round
e4m3 = FloatFormat.of("e4m3").round


def assert_nothing_is_left() -> None:
    assert emulating() is None
    assert _get_current_dispatch_mode_stack() == []
    assert overrides._holders == 0 and overrides._library is None
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._C._get_mkldnn_enabled()
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::softmax.int", "AutocastCPU")
    assert torch.equal(A @ B, torch.mm(A, B)) and not torch.equal(A @ B, half(A @ B))
    with torch.autocast("cpu", torch.float16):
        assert A.half().softmax(-1).dtype == torch.float16
        F.binary_cross_entropy(torch.rand(3), torch.rand(3))


def test_nothing_is_left_after_the_context() -> None:
    with emulate() as precision:
        assert emulating() is precision and precision.forward.name == "fp16"
        nn.LSTM(4, 4)(torch.randn(2, 3, 4))
    assert_nothing_is_left()


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), emulate(), emulate("bf16", "e5m2"):
        raise ZeroDivisionError
    assert_nothing_is_left()


def test_nothing_is_left_after_an_exception_in_the_backward_pass() -> None:
    def fail(grad: torch.Tensor) -> None:
        raise ZeroDivisionError

    weight = nn.Parameter(B.clone())
    weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError), emulate("fp16", "e5m2"):
        (A @ weight).sum().backward()
    assert_nothing_is_left()


def test_the_innermost_context_counts() -> None:
    with emulate("fp16", "fp16"):
        with emulate("e4m3", "e5m2"):
            assert torch.equal(A @ B, half(e4m3(A) @ e4m3(B)))
            with emulate("fp32", "fp32"):
                inner = A @ B
        assert torch.equal(A @ B, half(half(A) @ half(B)))
    assert torch.equal(inner, A @ B)
    assert_nothing_is_left()


def test_it_decorates_functions_also_recursive_ones() -> None:
    @emulate("e4m3", "e5m2")
    def nested(depth: int) -> torch.Tensor:
        assert emulating() is not None
        return A @ B if depth == 0 else nested(depth - 1)

    assert torch.equal(nested(2), half(e4m3(A) @ e4m3(B)))
    assert_nothing_is_left()


def test_one_context_object_can_be_entered_again() -> None:
    context = emulate("fp16", "e5m2")
    with context, context:
        assert emulating() is not None
    with context:
        assert torch.equal(A @ B, half(half(A) @ half(B)))
    assert_nothing_is_left()


def test_other_threads_are_not_emulated() -> None:
    seen: dict[str, object] = {}

    def other() -> None:
        h = A.half()
        seen["emulating"] = emulating()
        seen["product"] = A @ B
        with torch.autocast("cpu", torch.float16):
            seen["softmax"] = h.softmax(-1).dtype
            seen["bce"] = F.binary_cross_entropy(torch.rand(3).half(), torch.rand(3)).dtype
            seen["cosine"] = F.cosine_similarity(h, h).dtype
        q = spread(1, 2, 4, 8).requires_grad_()
        seen["attention"] = F.scaled_dot_product_attention(q, q, q)
        seen["query"] = q
        x = torch.randn(2, 3, 6)
        torch.manual_seed(0)
        seen["lstm"] = nn.LSTM(6, 6)(x)[0].dtype

    with emulate():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen["emulating"] is None
    assert torch.equal(seen["product"], A @ B)
    assert seen["softmax"] == seen["cosine"] == torch.float16
    assert seen["bce"] == seen["lstm"] == torch.float32
    q = seen["query"]
    assert torch.equal(seen["attention"], F.scaled_dot_product_attention(q, q, q))


def test_two_threads_emulate_their_own_formats() -> None:
    found: dict[str, torch.Tensor] = {}
    gate = threading.Barrier(2)

    def work(name: str) -> None:
        with emulate(name, name):
            gate.wait()
            found[name] = A @ B
            gate.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("fp16", "e4m3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found["fp16"], half(half(A) @ half(B)))
    assert torch.equal(found["e4m3"], half(e4m3(A) @ e4m3(B)))
    assert_nothing_is_left()


@pytest.mark.parametrize("backward", ["fp16", "e5m2"])
def test_float32_products_within_autocast_were_asked_for_and_stay_exact(backward: str) -> None:
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    grad = spread(4, 5)
    wanted = (a @ b).detach(), *torch.autograd.grad(a @ b, (a, b), grad)
    with emulate("fp16", backward):
        with torch.autocast("cpu", torch.float16):
            lower = a @ b
            with torch.autocast("cpu", enabled=False):
                exact = a @ b
        found = exact.detach(), *torch.autograd.grad(exact, (a, b), grad)
        rounded = torch.autograd.grad(lower, (a, b), grad.half())
    assert lower.dtype == torch.float16
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(rounded[0], wanted[1])


def test_float32_convolution_and_attention_within_autocast_stay_exact() -> None:
    x, w = spread(1, 3, 6, 6), spread(4, 3, 3, 3).requires_grad_()
    q = spread(1, 2, 4, 8).requires_grad_()
    conv, attention = F.conv2d(x, w), F.scaled_dot_product_attention(q, q, q)
    wanted = torch.autograd.grad(conv.sum(), w), torch.autograd.grad(attention.sum(), q)
    with emulate("fp16", "e5m2"):
        with torch.autocast("cpu", torch.float16):
            F.conv2d(x, w)
            with torch.autocast("cpu", enabled=False):
                found = F.conv2d(x, w), F.scaled_dot_product_attention(q, q, q)
        grads = torch.autograd.grad(found[0].sum(), w), torch.autograd.grad(found[1].sum(), q)
    assert torch.equal(found[0], conv) and torch.equal(found[1], attention)
    assert torch.equal(grads[0][0], wanted[0][0]) and torch.equal(grads[1][0], wanted[1][0])


def test_an_unknown_format_is_refused_before_anything_is_entered() -> None:
    with pytest.raises(ValueError, match="not a known format"):
        emulate("fp8")
    assert_nothing_is_left()


def test_results_between_products_take_the_format_that_was_asked_for() -> None:
    bf16 = FloatFormat.of("bf16").round
    with emulate("e4m3", "e5m2", between="bf16"):
        assert torch.equal(A @ B, bf16(e4m3(A) @ e4m3(B)))
    with emulate(FloatFormat(5, 7), "fp16"):
        assert emulating().forward_result == FloatFormat.of("fp16")
