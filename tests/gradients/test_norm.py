"""The norm of all gradients, against one in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits
from gradscale.gradients.norm import gradient_norm


def norm_reference(gradients, norm_type):
    """The norm in float64, all at once: the oracle of `gradient_norm`."""
    whole = torch.cat([g.detach().to_dense().double().reshape(-1) for g in gradients])
    return float(torch.linalg.vector_norm(whole, norm_type)) if whole.numel() else 0.0


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TENSORS = st.lists(
    st.tuples(
        st.sampled_from(DTYPES),
        st.lists(st.floats(-60000, 60000, width=16), max_size=6),
    ),
    min_size=1,
    max_size=5,
)


def owners(gradients):
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return parameters


@settings(max_examples=150, deadline=None)
@given(TENSORS, st.sampled_from([1.0, 2.0, 3.0, math.inf]), st.sampled_from([None, True, False]))
def test_it_is_the_norm_of_one_long_vector(tensors, order, foreach):
    gradients = [torch.tensor(values, dtype=torch.float64).to(dtype) for dtype, values in tensors]
    norm = gradient_norm(owners(gradients), order, foreach)
    assert norm.value.item() == pytest.approx(norm_reference(gradients, order), rel=1e-5)
    wide = any(g.dtype is torch.float64 for g in gradients)
    assert norm.dtype == (torch.float64 if wide else torch.float32)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_float32_gradients_give_torchs_bits(order):
    parameters = owners([torch.randn(shape) for shape in ((3, 4), (5,), (), (2, 1, 2))])
    theirs = torch.nn.utils.get_total_norm([p.grad for p in parameters], order)
    assert_same_bits(gradient_norm(parameters, order).value, theirs)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_finite_gradients_have_a_finite_norm_though_their_squares_overflow(order):
    gradients = [torch.full((4,), 3e38), torch.ones(2)]
    assert torch.nn.utils.get_total_norm(gradients, order).isinf()
    norm = gradient_norm(owners(gradients), order).value.item()
    assert norm == pytest.approx(norm_reference(gradients, order))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_one_bad_element_makes_it_not_finite(bad, order):
    gradients = [torch.ones(3), torch.tensor([1.0, bad])]
    assert not math.isfinite(gradient_norm(owners(gradients), order).value.item())


def test_half_precision_is_summed_in_float32():
    gradients = [torch.full((4,), 60000.0, dtype=torch.float16)]
    norm = gradient_norm(owners(gradients))
    assert norm.value.item() == 120000.0 and norm.dtype is torch.float32


def test_duplicates_of_a_sparse_gradient_count_as_their_sum():
    parameter = torch.nn.Parameter(torch.zeros(3, 1))
    values = torch.tensor([[3.0], [1.0], [3.0]])
    indices = torch.tensor([[1, 1, 2]])
    parameter.grad = torch.sparse_coo_tensor(indices, values, (3, 1), check_invariants=False)
    assert gradient_norm([parameter]).value.item() == 5.0


def test_complex_gradients_count_by_magnitude():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    parameter.grad = torch.tensor([3 + 4j])
    assert gradient_norm([parameter]).value.item() == 5.0


def test_without_gradients_there_is_none():
    assert gradient_norm([torch.nn.Parameter(torch.ones(2))]) is None


def test_gradients_at_a_tiny_scale_have_a_norm_though_their_squares_vanish():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3 * 2.0**-90, 4 * 2.0**-90])
    norm = gradient_norm([parameter])
    assert norm is not None
    assert norm.value.item() == 5 * 2.0**-90


@pytest.mark.parametrize("order", [2.0, 4.0, 16.0])
def test_powers_that_float32_flushes_count_as_well(order):
    gradients = [
        torch.full((1000,), 2.0 ** (-148.6 / order)),
        torch.full((1,), 2.0 ** (-147 / order)),
    ]
    norm = gradient_norm(owners(gradients), order).value.item()
    assert norm == pytest.approx(norm_reference(gradients, order), rel=1e-5)
