"""The formats of a product: of its operands and of its result, in each direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.formats import FloatFormat

_HALF_WIDTH = 16  # bits, the sign among them
_STORED = {
    torch.float32: FloatFormat.of(torch.float32),
    torch.float16: FloatFormat.of(torch.float16),
    torch.bfloat16: FloatFormat.of(torch.bfloat16),
}


@dataclass(frozen=True)
class DirectionFormats:
    """What the products of each direction round to.

    Args:
        forward: operands of forward products, and the saved operand of backward ones.
        backward: the gradient operand of backward products.
        forward_result: what a forward product returns.
        backward_result: what a backward product returns.

    Example:
        >>> DirectionFormats.of("fp16", "e5m2").backward_result.name
        'fp16'
    """

    forward: FloatFormat
    backward: FloatFormat
    forward_result: FloatFormat
    backward_result: FloatFormat

    @staticmethod
    def of(
        forward: FloatFormat | torch.dtype | str,
        backward: FloatFormat | torch.dtype | str,
        between: FloatFormat | torch.dtype | str | None = None,
    ) -> DirectionFormats:
        """The formats that `emulate` was asked for.

        Without `between`, the result of a product has the direction's own format, or float16 where
        that is narrower than 16 bits, as hardware with 8-bit operands does it.
        """
        operands = FloatFormat.of(forward), FloatFormat.of(backward)
        if between is not None:
            results = (FloatFormat.of(between),) * 2
        else:
            results = carrier(operands[0]), carrier(operands[1])
        return DirectionFormats(*operands, *results)

    @property
    def directions_differ(self) -> bool:
        """Whether a backward product must know which of its operands is the gradient."""
        return (self.forward, self.forward_result) != (self.backward, self.backward_result)


def carrier(format: FloatFormat) -> FloatFormat:
    """The format that stores what passes between products which read it in `format`.

    Example:
        >>> carrier(FloatFormat.of("e5m2")).name, carrier(FloatFormat.of("bf16")).name
        ('fp16', 'bf16')
    """
    # Sign, exponent and mantissa.
    wide = 1 + format.exponent_bits + format.mantissa_bits >= _HALF_WIDTH
    return format if wide else FloatFormat.of(torch.float16)


def as_format(dtype: torch.dtype) -> FloatFormat:
    """The format of one of the dtypes that are emulated."""
    return _STORED[dtype]


def takes_part(*tensors: Tensor) -> bool:
    """Whether these operands take part: dense, real, 32 bits wide or narrower, of one dtype.

    Torch refuses mixed dtypes, and no hardware multiplies them.
    """
    return len({tensor.dtype for tensor in tensors}) == 1 and all(
        tensor.dtype in _STORED and tensor.layout == torch.strided and type(tensor) in _PLAIN
        for tensor in tensors
    )


# A subclass dispatches first, to plain tensors that come by here themselves.
_PLAIN = (Tensor, torch.nn.Parameter)


def as_operand(tensor: Tensor, format: FloatFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """`tensor` rounded to `format`, in `dtype`, which must hold the format's values."""
    if _STORED[tensor.dtype] == format:
        # It holds nothing but values of the format.
        return tensor.to(dtype)
    return format.round(tensor.to(torch.float32)).to(dtype)


def as_result(product: Tensor, format: FloatFormat, dtype: torch.dtype) -> Tensor:
    """`product` rounded to `format`, in `dtype`."""
    if _STORED[dtype] == format:
        return product.to(dtype)
    return format.round(product).to(dtype)
