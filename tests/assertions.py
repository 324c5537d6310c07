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


def assert_same_gradients(left, right):
    """The same bits in every `.grad`, of any layout and dtype; None where the other is None."""
    for number, (one, two) in enumerate(zip(left, right, strict=True)):
        assert (one is None) == (two is None), f"parameter {number}"
        assert one is None or torch.equal(_bits(one), _bits(two)), f"parameter {number}"


def _bits(grad):
    if grad.layout == torch.sparse_coo:
        return torch.cat([grad._indices().flatten().double(), grad._values().flatten().double()])
    if grad.is_complex():
        grad = torch.view_as_real(grad.resolve_conj())
    return grad.contiguous().view(torch.int64 if grad.dtype == torch.float64 else torch.int32)
