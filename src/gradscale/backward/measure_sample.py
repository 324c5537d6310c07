"""Of a large tensor in host memory: the largest of all elements, and a part to count octaves in.

What `Windows` reads off octaves are shares of many elements, and some ten thousand say as much of a
share as a million. What it must never miss is one element that overflows, and so the largest
magnitude is that of all. Where a part does not tell, there is no sample, and all are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.measure_repeats import is_dense
from gradscale.backward.measure_rows import (
    AMAX,
    FIELDS,
    FIRST_NORMAL,
    ZERO,
    columns_of,
    count_by_torch,
    empty_counts,
)

ENOUGH = 1 << 14
"""Elements of a sample: a share of one in a thousand then has a standard deviation of a quarter of
itself, and of half of itself where three quarters are zero."""

FINEST_SHARE = 5e-4
"""The smallest share that a sample can tell."""

_WHOLE = 3 * ENOUGH
_LEAST_NONZERO = ENOUGH // 4
_LOWEST = 4
"""Of float16, the first bit pattern above the two lowest octaves."""


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
        numel: how many it has.
        dtype: its own.
        bits: of some of them, or all: their magnitudes' bit patterns, a copy, shape `(n,)`.
        nonzero: how many of these are not zero; None if that was not asked for.
    """

    largest: float
    numel: int
    dtype: torch.dtype
    bits: Tensor
    nonzero: int | None

    @staticmethod
    def of(tensor: Tensor) -> Sample | None:
        """A sample, which of a smaller tensor is all of it; None where one will not do.

        That is where some elements are not finite, or three quarters are zero, or float16 may have
        lost some already, so that their number is guessed from the lowest octaves; and where an
        accelerator reads all of them at once anyway.

        Example:
            >>> x = torch.linspace(-3.0, 2.0, 100_000)
            >>> sample = Sample.of(x)
            >>> sample.largest, sample.numel, len(sample.bits)
            (3.0, 100000, 16384)
            >>> Sample.of(x / 0) is None, Sample.of((x - 1).relu()) is None
            (True, True)
        """
        numel = tensor.numel()
        if type(tensor) is not Tensor or not tensor.is_cpu or tensor.dtype not in _FORMS:
            return None
        if not (numel and is_dense(tensor)):
            return None
        in_memory = tensor.as_strided((numel,), (1,))
        low, high = map(float, torch.aminmax(in_memory))
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        form, nonzero = _FORMS[tensor.dtype], None
        if numel < _WHOLE:
            bits = in_memory.view(form.bits) & form.magnitude
        else:
            bits = in_memory.view(form.bits).index_select(0, drawn(numel))
            bits &= form.magnitude
            nonzero = int(bits.count_nonzero())
            if nonzero < _LEAST_NONZERO or (tensor.dtype is torch.float16 and _reaches_down(bits)):
                return None
        return Sample(max(abs(low), abs(high)), numel, tensor.dtype, bits, nonzero)


def _reaches_down(bits: Tensor) -> bool:
    """Whether float16 may have flushed some, so that their number is to be guessed."""
    return bool(((bits > 0) & (bits < _LOWEST)).any())


@lru_cache(maxsize=64)
def drawn(numel: int) -> Tensor:
    """Which elements are sampled: one drawn from each of `ENOUGH` equal stretches of a tensor.

    At equal distances they would beat against rows, channels or heads. The same in every step, on
    every rank and in every run.

    Returns:
        Shape `(ENOUGH,)`, int32 where that reaches, ascending.

    Example:
        >>> apart = drawn(100_000).diff()
        >>> int(apart.min()) >= 0, int(apart.max()) <= 13, drawn(100_000).max() < 100_000
        (True, True, tensor(True))
    """
    generator = torch.Generator("cpu").manual_seed(0)
    within = torch.rand(ENOUGH, generator=generator, dtype=torch.float64, device="cpu")
    stretches = torch.arange(ENOUGH, dtype=torch.float64, device="cpu")
    reaches = numel <= torch.iinfo(torch.int32).max
    places = (stretches + within) * (numel / ENOUGH)
    return places.to(torch.int32 if reaches else torch.int64)


def count_samples(samples: Sequence[Sample]) -> Tensor:
    """About what their tensors held, a row of `measure_rows` for each."""
    rows = empty_counts(len(samples))
    counted = [_exponent_fields(sample) for sample in samples]
    fields = torch.stack([fields for fields, _ in counted])
    rows[:, ZERO] = fields[:, 0]
    rows[:, FIRST_NORMAL:] = fields[:, 1:-1]
    # What lies below all exponents is in field 0, too. It is rare, and no case for fields.
    nonzero = torch.tensor([nonzero for _, nonzero in counted], device="cpu")
    for number in (nonzero != fields[:, 1:].sum(1)).nonzero().view(-1).tolist():
        rows[number] = 0
        count_by_torch(rows[number], samples[number].bits.view(samples[number].dtype))
    numels = torch.tensor([sample.numel for sample in samples], device="cpu")
    lengths = torch.tensor([len(sample.bits) for sample in samples], device="cpu")
    rows = (rows * numels[:, None]).div_(lengths[:, None], rounding_mode="floor")
    maxima = [sample.largest for sample in samples]
    largest = torch.tensor(maxima, dtype=torch.float32, device="cpu").view(torch.int32)
    # The octave in which a tensor ends is never empty.
    tops = columns_of(largest, ceil=False).to(torch.int64)[:, None]
    rows.scatter_(1, tops, rows.gather(1, tops).clamp_(min=1))
    rows[:, AMAX] = largest
    return rows


def _exponent_fields(sample: Sample) -> tuple[Tensor, int]:
    """How often each exponent field of float32 occurs, and how many elements are not zero.

    These are a few hundred places to count at, where a half has 32,768 patterns.
    """
    bits, dtype, nonzero = sample.bits, sample.dtype, sample.nonzero
    if nonzero is None:
        nonzero = int(bits.count_nonzero())
    if dtype is torch.float16:  # its subnormals are normal in float32, its exponents others
        bits, dtype = bits.view(dtype).to(torch.float32).view(torch.int32), torch.float32
    return torch.bincount(bits >> _FORMS[dtype].mantissa_bits, minlength=FIELDS), nonzero
