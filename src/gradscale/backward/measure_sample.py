"""Of a large tensor in host memory: the largest of all elements, and a part to count octaves in.

What a planner reads off octaves are shares of many elements, and some ten thousand say as much of a
share as a million. What it must never miss is one element that overflows, and so the largest
magnitude is that of all elements; a tensor with an infinity or a NaN is no case for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.measure_repeats import is_dense
from gradscale.backward.measure_rows import (
    AMAX,
    OCTAVES,
    ZERO,
    columns_of,
    count_by_torch,
    empty_counts,
)

ENOUGH = 1 << 14
"""Elements of a sample: a share of one in a thousand is found to within a quarter of itself."""

_WHOLE = 3 * ENOUGH
_FEW = ENOUGH // 16
_FIELDS = 256
_FIRST_NORMAL = 23


class _Form(NamedTuple):
    """How the bits of a float are told apart from its sign, and its exponent from the rest."""

    bits: torch.dtype
    magnitude: int
    mantissa_bits: int


_FORMS = {
    torch.float16: _Form(torch.int16, 0x7FFF, 10),
    torch.bfloat16: _Form(torch.int16, 0x7FFF, 7),
    torch.float32: _Form(torch.int32, 0x7FFFFFFF, 23),
}


class Sample(NamedTuple):
    """What is kept of a tensor.

    Attributes:
        largest: the magnitude of its largest element.
        step: for how many elements one of the sample stands.
        values: the sample, a copy, shape `(ceil(numel / step),)`.
    """

    largest: float
    step: int
    values: Tensor

    @staticmethod
    def of(tensor: Tensor) -> Sample | None:
        """A sample, which of a smaller tensor is all of it; None where one will not do.

        That is where some elements are not finite, or few are not zero; and where an accelerator
        reads all of them at once anyway.

        Example:
            >>> x = torch.linspace(-3.0, 2.0, 100_000)
            >>> sample = Sample.of(x)
            >>> sample.largest, sample.step, len(sample.values)
            (3.0, 7, 14286)
            >>> Sample.of(x / 0) is None, Sample.of(x.relu() * (x > 1.99)) is None
            (True, True)
        """
        numel = tensor.numel()
        if type(tensor) is not Tensor or not tensor.is_cpu or tensor.dtype not in _FORMS:
            return None
        if not (numel and is_dense(tensor)):
            return None
        low, high = map(float, torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        step = apart(numel)
        # In the order of memory, which has no gaps.
        values = tensor.as_strided((-(-numel // step),), (step,)).clone()
        if step > 1 and int(values.view(_FORMS[values.dtype].bits).count_nonzero()) < _FEW:
            return None
        return Sample(max(abs(low), abs(high)), step, values)


def count_samples(samples: Sequence[Sample]) -> Tensor:
    """About what their tensors held, a row of `measure_rows` for each."""
    rows = empty_counts(len(samples))
    counted = [_exponent_fields(sample.values) for sample in samples]
    fields = torch.stack([fields for fields, _ in counted])
    rows[:, ZERO] = fields[:, 0]
    rows[:, OCTAVES + _FIRST_NORMAL :] = fields[:, 1:-1]
    # What lies below all exponents is in field 0, too. It is rare, and no case for fields.
    nonzero = torch.stack([nonzero for _, nonzero in counted])
    for number in (nonzero != fields[:, 1:].sum(1)).nonzero().view(-1).tolist():
        rows[number] = 0
        count_by_torch(rows[number], samples[number].values)
    rows *= torch.tensor([sample.step for sample in samples], device="cpu")[:, None]
    largest = torch.tensor([sample.largest for sample in samples], device="cpu").view(torch.int32)
    # The octave in which a tensor ends is never empty.
    tops = columns_of(largest, ceil=False).to(torch.int64)[:, None]
    rows.scatter_(1, tops, rows.gather(1, tops).clamp_(min=1))
    rows[:, AMAX] = largest
    return rows


def _exponent_fields(values: Tensor) -> tuple[Tensor, Tensor]:
    """How often each exponent field of float32 occurs, and how many elements are not zero.

    These are a few hundred places to count at, where a half has 32,768 patterns.
    """
    if values.dtype is torch.float16:  # its subnormals are normal in float32, its exponents others
        values = values.to(torch.float32)
    form = _FORMS[values.dtype]
    bits = values.view(form.bits) & form.magnitude
    nonzero = torch.count_nonzero(bits)
    return torch.bincount(bits.bitwise_right_shift_(form.mantissa_bits), minlength=_FIELDS), nonzero


def apart(numel: int) -> int:
    """How far the elements of a sample lie apart.

    A sample of every second element would see every second channel only, where there is an even
    number of them. This distance has no divisor in common with `numel`, hence none with any
    dimension of the tensor, and so meets every place along each equally often.

    Example:
        >>> apart(49_151), apart(100_000), apart(1_000_000)
        (1, 7, 61)
    """
    if numel < _WHOLE:
        return 1
    step = numel // ENOUGH
    while math.gcd(step, numel) > 1:
        step += 1
    return step
