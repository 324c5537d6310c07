"""Claims that many tests make."""

import torch


def assert_same_bits(left, right):
    """Equal element for element, NaN and signed zeros included."""
    assert left.dtype == right.dtype and left.shape == right.shape
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    assert torch.equal(left.contiguous().view(size), right.contiguous().view(size))


def assert_power_of_two(value):
    assert value > 0 and torch.frexp(torch.tensor(value, dtype=torch.float64)).mantissa == 0.5


def assert_same_trajectory(left, right):
    """Two lists of lists of tensors, the same bits at every step."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
