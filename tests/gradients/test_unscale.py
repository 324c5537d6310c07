"""One pass over the gradients, against the slow and obvious one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscale
from assertions import assert_same_bits
from gradscale.gradients.unscale import (
    check_groups,
    collect_gradients,
    finite_amax,
    gradient_values,
    tensor_amax,
    unscale_groups_,
)
from gradscale.scaler import GradScaler


def unscale_reference(gradients, scale):
    """Divides in place, tensor by tensor in float64; True if one is not finite, before or after.

    The slow, obvious version: the oracle of `unscale_groups_` and `check_groups`.
    """
    found_inf = False
    for grad in gradients:
        quotient = (grad.to(torch.float64) / scale).to(grad.dtype)
        found_inf |= not bool(torch.isfinite(grad).all() and torch.isfinite(quotient).all())
        grad.copy_(quotient)
    return found_inf


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
VALUES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e38, -3e38, 2.0**-149, 65504.0]),
)
TENSORS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(VALUES, max_size=6)), min_size=1, max_size=5
)
EXPONENTS = st.integers(-126, 126)


def owner_of(gradients):
    parameters = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient
        parameters.append(parameter)
    return torch.optim.SGD(parameters, lr=1.0)


def build(tensors):
    return [torch.tensor(values, dtype=torch.float64).to(dtype) for dtype, values in tensors]


@settings(max_examples=150, deadline=None)
@given(TENSORS, EXPONENTS)
def test_one_pass_divides_as_the_reference_does(tensors, exponent):
    fast, slow = build(tensors), build(tensors)
    groups, _ = collect_gradients(owner_of(fast))
    inverse = torch.tensor(2.0**-exponent)
    flags = unscale_groups_(groups, inverse, torch.zeros(()))
    before = any(not torch.isfinite(grad).all() for grad in slow)
    unscale_reference(slow, 2.0**exponent)
    assert flags[torch.device("cpu")].item() == float(before)
    for a, b in zip(fast, slow, strict=True):
        # A NaN may come out with another payload: bits are compared where there is a number.
        assert_same_bits(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5))


@settings(max_examples=150, deadline=None)
@given(TENSORS, EXPONENTS)
def test_the_check_flags_gradient_and_quotient_and_writes_nothing(tensors, exponent):
    # Half-precision gradients are divided by the optimizer in float32: only that can overflow.
    fast = [grad.to(torch.float32) for grad in build(tensors)]
    copies = [grad.clone() for grad in fast]
    versions = [grad._version for grad in fast]
    flags = check_groups(collect_gradients(owner_of(fast))[0], torch.tensor(2.0**-exponent))
    assert (flags[torch.device("cpu")].item() > 0) == unscale_reference(copies, 2.0**exponent)
    if exponent < 0:
        assert [grad._version for grad in fast] == versions


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_amax_is_the_largest_magnitude(tensors):
    gradients = [grad.to(torch.float32) for grad in build(tensors)]
    every = torch.cat([grad.abs() for grad in gradients] + [torch.zeros(1)])
    largest = tensor_amax(gradients)
    assert largest.item() == every.max().item() or largest.isnan() == every.isnan().any()
    finite = [grad for grad in gradients if torch.isfinite(grad).all()]
    kept = torch.cat([grad.abs() for grad in finite] + [torch.zeros(1)]).max()
    groups, _ = collect_gradients(owner_of(gradients))
    assert finite_amax(groups, torch.device("cpu")).item() == kept.item()


def test_groups_keep_the_order_within_device_and_dtype():
    gradients = [torch.full((1,), float(i), dtype=DTYPES[i % 2]) for i in range(6)]
    groups, apart = collect_gradients(owner_of(gradients))
    by_dtype = groups[torch.device("cpu")]
    assert [grad.item() for grad in by_dtype[torch.float32]] == [0.0, 2.0, 4.0] and not apart
    assert [grad.item() for grad in by_dtype[torch.float64]] == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sparse_gradients_are_unscaled_and_checked(dtype):
    parameter = torch.nn.Parameter(torch.zeros(3, 1, dtype=dtype))
    values = torch.tensor([[4.0], [8.0]], dtype=dtype)
    parameter.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), values, (3, 1), check_invariants=False
    )
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    assert parameter.grad.to_dense().tolist() == [[0.0], [3.0], [0.0]]


def test_the_sum_of_sparse_float16_duplicates_is_what_is_checked():
    parameter = torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.float16))
    values = torch.full((2, 1), 60000.0, dtype=torch.float16)
    parameter.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), values, (3, 1), check_invariants=False
    )
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert scaler.last_step.skipped


def test_complex_gradients_are_seen_as_pairs():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    parameter.grad = torch.tensor([1 + 2j, 3 + 4j])
    values = gradient_values(parameter)
    assert values.shape == (2, 2) and values.data_ptr() == parameter.grad.data_ptr()


def test_an_optimizer_without_gradients_has_no_groups():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert collect_gradients(optimizer) == ({}, {})


@pytest.mark.cuda
@settings(max_examples=20, deadline=None)
@given(TENSORS, EXPONENTS)
def test_cuda_checks_as_the_reference_does(tensors, exponent):
    gradients = [grad.to(torch.float32).cuda() for grad in build(tensors)]
    copies = [grad.cpu() for grad in gradients]
    flags = check_groups(collect_gradients(owner_of(gradients))[0], torch.tensor(2.0**-exponent))
    (flag,) = flags.values()
    assert bool(flag) == unscale_reference(copies, 2.0**exponent)


# Not two passes in half precision: torch cannot add sparse float16 tensors on the CPU.
@pytest.mark.parametrize(("converted", "passes"), [(False, 1), (False, 2), (True, 1)])
def test_what_a_policy_sees_of_a_sparse_gradient_is_the_sum_of_its_duplicates(converted, passes):
    seen = []

    class Watching(gradscale.Static):
        needs = frozenset({"amax", "exponents"})

        def update(self, state, observation):
            seen.append(observation)
            return super().update(state, observation)

    table = torch.nn.Embedding(4, 1, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.0)
    if converted:
        gradscale.half_precision(table, optimizer)
    scaler = gradscale.GradScaler("cpu", policy=Watching(4.0))
    for _ in range(passes):
        scaler.scale(table(torch.zeros(500, dtype=torch.int64)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert seen[0].amax.item() == 500 * passes
    assert seen[0].exponents.sum() == 1
