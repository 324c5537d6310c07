"""What a number format can hold: range, precision, and the value a float rounds to.

The numerical traps of loss scaling all live at the two ends of a format, so they are written down
once, here:

- Round-to-nearest flushes at or below *half* the smallest subnormal (2^-25 in float16; the tie goes
  to even, zero).
- The top octave is half-open: float16 overflows at 65 520, not at 65 504 and not at 65 536.
- ``float8_e4m3fn`` has no infinity: what lies above 448 saturates or becomes NaN. Torch's own cast
  has done both (NaN in 2.6, 448 in 2.13), so that nothing here depends on it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor

Overflow = Literal["inf", "nan", "saturate"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format with subnormals, rounded to nearest even.

    Args:
        exponent_bits: width of the exponent field, at least 2.
        mantissa_bits: width of the stored mantissa, at least 1.
        overflow: what a value above `max` becomes: ``"inf"``, ``"nan"`` or ``"saturate"`` (`max`).
        reserved: mantissa codes of the topmost exponent that are not numbers. ``None`` (IEEE)
            reserves the whole topmost exponent for inf and NaN; 1 is the ``fn`` rule of
            ``float8_e4m3fn``; 0 reserves none.

    Raises:
        ValueError: if the format does not fit into float32 (8 exponent and 23 mantissa bits).

    Example:
        >>> half = FloatFormat.of(torch.float16)
        >>> half.max, half.smallest_normal == 2.0**-14, half.smallest_subnormal == 2.0**-24
        (65504.0, True, True)
        >>> half.round(torch.tensor([65519.0, 65520.0, 2.0**-25]))
        tensor([65504.,    inf,     0.])
    """

    exponent_bits: int
    mantissa_bits: int
    overflow: Overflow = "inf"
    reserved: int | None = None

    def __post_init__(self) -> None:
        if not (2 <= self.exponent_bits <= 8 and 1 <= self.mantissa_bits <= 23):
            raise ValueError(
                f"`FloatFormat({self.exponent_bits}, {self.mantissa_bits})` must have 2 to 8 "
                "exponent bits and 1 to 23 mantissa bits, so that float32 holds all its values."
            )
        if self.overflow not in ("inf", "nan", "saturate"):
            raise ValueError(
                f"`FloatFormat(overflow={self.overflow!r})` must be 'inf', 'nan' or 'saturate'."
            )
        if self.reserved is not None and not 0 <= self.reserved < 2**self.mantissa_bits:
            raise ValueError(
                f"`FloatFormat(reserved={self.reserved})` must be None or lie in "
                f"[0, {2**self.mantissa_bits})."
            )
        if self.reserved is not None and self.exponent_bits == 8:
            raise ValueError(
                f"`FloatFormat(8, {self.mantissa_bits}, reserved={self.reserved})` would hold "
                "values beyond float32. Leave `reserved` at None, or take fewer exponent bits."
            )

    @staticmethod
    def of(format: FloatFormat | torch.dtype | str) -> FloatFormat:
        """The format of a torch dtype, or of a name such as ``"fp16"``, ``"half"`` or ``"e5m2"``.

        The `name` of a format leads back to it, whether or not torch has a dtype for it.

        Example:
            >>> FloatFormat.of("e3m4") == FloatFormat(3, 4)
            True

        Raises:
            ValueError: if there is no such format; the message lists those that exist.
        """
        if isinstance(format, FloatFormat):
            return format
        if isinstance(format, str) and format in _BY_NAME:
            return _BY_NAME[format]
        dtype = getattr(torch, format, None) if isinstance(format, str) else format
        known = isinstance(dtype, torch.dtype) and _BY_DTYPE.get(dtype)
        found = known or _spelled(str(format))
        if found is None:
            raise ValueError(
                f"`FloatFormat.of({format!r})` is not a known format. Pass one of "
                f"{', '.join(_BY_NAME)}, the torch dtype of one, or a "
                "`FloatFormat(exponent_bits, mantissa_bits)`."
            )
        return found

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype with exactly these values, or None."""
        for dtype, format in _BY_DTYPE.items():
            if (format.exponent_bits, format.mantissa_bits, format.reserved) == (
                self.exponent_bits,
                self.mantissa_bits,
                self.reserved,
            ):
                return dtype
        return None

    @cached_property
    def name(self) -> str:
        """The short name, such as ``fp16`` or ``e4m3``; ``e3m4`` for a format without one.

        What is not as in IEEE 754 follows: ``e4m3:nan:1`` for `overflow` and `reserved`.
        """
        for name, format in _BY_NAME.items():
            if format == self:
                return name
        name = f"e{self.exponent_bits}m{self.mantissa_bits}"
        if self.reserved is not None:
            return f"{name}:{self.overflow}:{self.reserved}"
        return (
            name if self.overflow == "inf" and name not in _BY_NAME else f"{name}:{self.overflow}"
        )

    @cached_property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return 2 ** (self.exponent_bits - 1) - 1

    @cached_property
    def min_exponent(self) -> int:
        """Base-2 exponent of the smallest normal number."""
        return 1 - self.bias

    @cached_property
    def max_exponent(self) -> int:
        """Base-2 exponent of the topmost octave that holds a finite number."""
        return self.bias + (self.reserved is not None)

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        # In units of the last place: a mantissa of ones, less the codes at the top that are NaN.
        steps = 2 ** (self.mantissa_bits + 1) - 1 - (self.reserved or 0)
        return math.ldexp(steps, self.max_exponent - self.mantissa_bits)

    @cached_property
    def overflow_threshold(self) -> float:
        """The smallest magnitude that rounds above `max` (65 520 in float16)."""
        half_step = math.ldexp(0.5, self.max_exponent - self.mantissa_bits)
        threshold = self.max + half_step
        # The tie rounds to even: up if the mantissa of `max` is odd, else down to `max` itself.
        odd = (self.reserved or 0) % 2 == 0
        return threshold if odd else math.nextafter(threshold, math.inf)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with full precision."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa_bits)

    @property
    def flush_threshold(self) -> float:
        """The largest magnitude that rounds to zero: half the smallest subnormal."""
        return self.smallest_subnormal / 2

    def fits_into(self, other: FloatFormat) -> bool:
        """Whether every finite value of this format is one of `other`.

        Example:
            >>> e4m3 = FloatFormat.of("e4m3")
            >>> e4m3.fits_into(FloatFormat.of("fp16")), e4m3.fits_into(FloatFormat.of("e5m2"))
            (True, False)
        """
        return (
            self.mantissa_bits <= other.mantissa_bits
            and self.max <= other.max
            and self.smallest_subnormal >= other.smallest_subnormal
        )

    def round(self, tensor: Tensor) -> Tensor:
        """The nearest value of this format, ties to even, in the dtype of `tensor`.

        A cast to float16, bfloat16 or `float8_e5m2` and back does it where there is one. A cast to
        `float8_e4m3fn` is never used: what it makes of values above 448 differs between torch
        versions (448, or NaN in 2.6), and here `overflow` alone says so.

        Args:
            tensor: any shape, any floating dtype; float64 is first rounded to float32.

        Returns:
            The same shape and dtype, `tensor` itself if nothing can change; NaN stays NaN;
            infinities follow `overflow`; zeros keep their sign.

        Raises:
            TypeError: if `tensor` is not floating-point.
        """
        if not tensor.is_floating_point():
            raise TypeError(
                f"`FloatFormat.round(tensor)` needs a floating-point tensor, not {tensor.dtype}. "
                "Convert it first, or round the real and imaginary parts of a complex one."
            )
        if tensor.dtype == self.dtype and FloatFormat.of(tensor.dtype).overflow == self.overflow:
            return tensor
        rounded = self._nearest(tensor.to(torch.float32))
        return rounded.to(tensor.dtype)

    def _nearest(self, single: Tensor) -> Tensor:
        dtype = self.dtype
        if dtype in _EXACT_CASTS:
            rounded = single if dtype == torch.float32 else single.to(dtype).to(torch.float32)
            return rounded if self.overflow == "inf" else self._apply_overflow(rounded)
        # There the shift would leave float32, or be no larger than the number itself.
        if self.exponent_bits == 8 or self.mantissa_bits == 23:
            return self._apply_overflow(self._round_by_quantum(single))
        return self._apply_overflow(self._round_by_addition(single))

    def _round_by_addition(self, single: Tensor) -> Tensor:
        """The nearest multiple of each element's quantum, by float32's own rounding.

        In the octave of `shift` the quantum of float32 is the wanted one, so that adding `shift`
        rounds, and subtracting it again is exact. For formats narrower than float32 in both fields;
        what lies above the format's own octaves need not be right, it overflows.
        """
        octave = (single.view(torch.int32) & _EXPONENT_FIELD).view(torch.float32)
        # Subnormals have the quantum of the smallest normal. Above the range any will do, as long
        # as the shift is finite.
        octave = octave.clamp(self.smallest_normal, math.ldexp(1.0, self.max_exponent + 1))
        shift = octave.mul_(2.0 ** (23 - self.mantissa_bits))
        # The shift lies 23 - mantissa_bits octaves above: there float32's last place is the
        # quantum, so the sum is rounded to it, ties to even, and the difference is exact. The sign
        # returns, for a -0 as well.
        return torch.copysign(single.abs().add_(shift).sub_(shift), single)

    def _round_by_quantum(self, single: Tensor) -> Tensor:
        """The slow, obvious version, for the widest formats and as the oracle of the fast one."""
        # `frexp` has mantissas in [1/2, 1), and octaves begin at 1: hence the 1 less.
        _, exponent = torch.frexp(single)
        octave = (exponent - 1).clamp(min=self.min_exponent)
        # Two exact steps, because 2^(mantissa_bits - octave) alone may exceed float32.
        bits = torch.tensor(self.mantissa_bits, device="cpu")
        scaled = torch.ldexp(torch.ldexp(single, -octave), bits)
        steps = torch.round(scaled)
        back = torch.ldexp(torch.ldexp(steps, -bits), octave)
        return torch.where(torch.isfinite(single), back, single)

    def _apply_overflow(self, rounded: Tensor) -> Tensor:
        if self.overflow == "saturate":
            return rounded.clamp(-self.max, self.max)
        above = rounded.abs() > self.max
        if self.overflow == "nan":
            return torch.where(above, torch.nan, rounded)
        # Times infinity, because the sign must stay.
        return torch.where(above, rounded * torch.inf, rounded)


def _spelled(name: str) -> FloatFormat | None:
    """The format that a `FloatFormat.name` without an entry in the table spells out."""
    found = _SPELLED.fullmatch(name)
    if found is None:
        return None
    exponent, mantissa, overflow, reserved = found.groups()
    rule = cast(Overflow, overflow or "inf")
    return FloatFormat(
        int(exponent), int(mantissa), rule, None if reserved is None else int(reserved)
    )


_SPELLED = re.compile(r"e(\d)m(\d{1,2})(?::(inf|nan|saturate)(?::(\d+))?)?")
_BY_NAME: dict[str, FloatFormat] = {
    "fp32": FloatFormat(8, 23),
    "bf16": FloatFormat(8, 7),
    "fp16": FloatFormat(5, 10),
    "e5m2": FloatFormat(5, 2),
    "e4m3": FloatFormat(4, 3, overflow="saturate", reserved=1),
}
_BY_DTYPE: dict[torch.dtype, FloatFormat] = {
    torch.float32: _BY_NAME["fp32"],
    torch.bfloat16: _BY_NAME["bf16"],
    torch.float16: _BY_NAME["fp16"],
    torch.float8_e5m2: _BY_NAME["e5m2"],
    torch.float8_e4m3fn: _BY_NAME["e4m3"],
}
_EXPONENT_FIELD = 0x7F800000
_EXACT_CASTS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2)
"""Dtypes with an infinity: the cast from float32 rounds and overflows as IEEE 754 says."""
