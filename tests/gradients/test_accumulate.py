"""Sums of micro-batches in float32, against sums in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits
from gradscale.gradients.accumulate import MicroBatches

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Blind(MicroBatches):
    """Decides on the device, as on an accelerator, where the host does not see the flags."""

    def _wanted(self, flag, weight):
        return self._wanted_on_device(flag, weight)


def run(dtype, values, weights, *, scale, drop, divide_by, kind=MicroBatches):
    source = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    target = (
        source if dtype in (torch.float32, torch.float64) else torch.nn.Parameter(torch.zeros(2))
    )
    sums = kind([source], [target], drop_overflow=drop, divide_by=divide_by)
    inverse = torch.tensor(1 / scale)
    for value, weight in zip(values, weights, strict=True):
        source.grad = torch.tensor([value, 1.0], dtype=torch.float64).mul(scale).to(dtype)
        sums.add_(inverse, weight, sums.check(inverse) if drop else None)
        assert source.grad is None
    flag = sums.deliver_()
    return flag.item(), target.grad, sums


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    parts=st.lists(
        st.tuples(
            st.sampled_from([0.5, -1.0, 3.0, 2.0**-20, math.inf, math.nan]),
            st.sampled_from([1.0, 2.0, 0.5, 3.0]),
        ),
        min_size=1,
        max_size=6,
    ),
    exponent=st.integers(0, 12),
    divide_by=st.sampled_from(["kept", "all", "nothing"]),
    kind=st.sampled_from([MicroBatches, Blind]),
)
def test_it_is_the_weighted_mean_of_those_that_are_finite(dtype, parts, exponent, divide_by, kind):
    values, weights = zip(*parts, strict=True)
    flag, grad, sums = run(
        dtype, values, weights, scale=2.0**exponent, drop=True, divide_by=divide_by, kind=kind
    )
    kept = [(v, w) for v, w in parts if math.isfinite(v)]
    assert sums.dropped.item() == len(parts) - len(kept)
    assert flag == (0.0 if kept else 1.0)
    if not kept:
        # The last one stays, for who asks which parameters are to blame.
        assert not grad[0].isfinite() and grad[1].isfinite()
        return
    divisor = {"kept": sum(w for _, w in kept), "all": sum(weights), "nothing": 1.0}[divide_by]
    for index in (0, 1):
        expected = sum(w * (v if index == 0 else 1.0) for v, w in kept) / divisor
        assert grad[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_without_dropping_one_bad_micro_batch_flags_the_mean(bad):
    flag, _, _ = run(
        torch.float32, [1.0, bad, -bad, 1.0], [1.0] * 4, scale=4.0, drop=False, divide_by="kept"
    )
    assert flag == 1.0


def test_micro_batches_of_equal_weight_give_the_bits_of_autograd():
    torch.manual_seed(3)
    gradients = [torch.randn(50) for _ in range(4)]
    parameter = torch.nn.Parameter(torch.zeros(50))
    sums = MicroBatches([parameter], [parameter], divide_by="nothing")
    for gradient in gradients:
        parameter.grad = gradient * 8.0
        sums.add_(torch.tensor(1 / 8), 1.0)
    sums.deliver_()
    expected = gradients[0].clone()
    for gradient in gradients[1:]:
        expected += gradient
    assert_same_bits(parameter.grad, expected)


def test_what_float16_loses_the_sum_keeps():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
    master = torch.nn.Parameter(torch.zeros(1))
    sums = MicroBatches([parameter], [master], divide_by="nothing")
    for value in (2048.0, *[1.0] * 8):
        parameter.grad = torch.tensor([value], dtype=torch.float16)
        sums.add_(torch.ones(()), 1.0)
    sums.deliver_()
    assert master.grad.item() == 2056.0
    total = torch.tensor(2048.0, dtype=torch.float16)
    for _ in range(8):
        total += 1.0
    assert total.item() == 2048.0


def test_the_buffer_is_no_view_of_the_gradient():
    """DDP's gradients are views of buckets, which the next backward pass overwrites."""
    bucket = torch.full((4,), 2.0)
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = bucket.view(4)
    sums = MicroBatches([parameter], [parameter])
    sums.add_(torch.ones(()), 1.0)
    bucket.fill_(99.0)
    sums.deliver_()
    assert parameter.grad.tolist() == [2.0] * 4


def test_complex_gradients_are_summed():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    sums = MicroBatches([parameter], [parameter])
    for value in (1 + 2j, 3 - 4j):
        parameter.grad = torch.tensor([value]) * 4
        sums.add_(torch.tensor(0.25), 1.0)
    sums.deliver_()
    assert parameter.grad.item() == 2 - 1j


DTYPES = (torch.float32, torch.float16, torch.float64)


def test_sums_of_several_dtypes_share_a_mean_and_a_flag():
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in DTYPES]
    sums = MicroBatches(parameters, parameters)
    for value in (2.0, 6.0):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, value)
        sums.add_(torch.tensor(0.5), 1.0)
    assert sums.deliver_() == 0
    assert all(parameter.grad.tolist() == [2.0, 2.0] for parameter in parameters)
    parameters[2].grad[1] = math.nan
    sums.add_(torch.tensor(0.5), 1.0)
    assert sums.deliver_() == 1


def test_sparse_gradients_are_refused_with_the_way_out():
    parameter = torch.nn.Parameter(torch.zeros(3, 1))
    values, indices = torch.ones(1, 1), torch.tensor([[1]])
    parameter.grad = torch.sparse_coo_tensor(indices, values, (3, 1), check_invariants=False)
    with pytest.raises(TypeError, match=r"layout torch\.sparse_coo.*Let backward\(\) accumulate"):
        MicroBatches([parameter], [parameter]).add_(torch.ones(()), 1.0)


def test_a_parameter_without_a_gradient_in_some_of_them():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    sums = MicroBatches([first, second], [first, second])
    first.grad = torch.tensor([2.0])
    sums.add_(torch.ones(()), 1.0)
    first.grad, second.grad = torch.tensor([4.0]), torch.tensor([8.0])
    sums.add_(torch.ones(()), 1.0)
    sums.deliver_()
    assert (first.grad.item(), second.grad.item()) == (3.0, 4.0)


@pytest.mark.cuda
@pytest.mark.parametrize("drop", [False, True])
def test_on_cuda_nothing_waits(drop):
    parameters = [torch.nn.Parameter(torch.zeros(2, device="cuda", dtype=d)) for d in DTYPES]
    values = (2.0, math.inf, 6.0) if drop else (2.0, 6.0)
    inverse = torch.tensor(0.5, device="cuda")
    for _ in range(2):
        sums = MicroBatches(parameters, parameters, drop_overflow=drop)
        for value in values:
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, value)
            sums.add_(inverse, 1.0, sums.check(inverse) if drop else None)
        flag = sums.deliver_()
        # The first time kernels are loaded.
        torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
    assert flag.item() == 0 and sums.dropped.item() == drop
    assert all(parameter.grad.tolist() == [2.0, 2.0] for parameter in parameters)


def test_a_mean_beyond_the_gradients_own_dtype_is_flagged():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    micro_batches = MicroBatches([parameter], [parameter], divide_by="nothing")
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, 40000.0], dtype=torch.float16)
        micro_batches.add_(torch.tensor(1.0), 1.0)
    assert micro_batches.deliver_().item() == 1.0
    assert parameter.grad.tolist() == [2.0, float("inf")]
