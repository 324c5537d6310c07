"""Lowers the scale before an overflow and raises it on measured underflow, by counting octaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.histogram import EXPONENT_BINS, MIN_OCTAVE
from gradscale.policies.bits import MIN_SCALE, floor_log2
from gradscale.policies.observed import octave_counts_of
from gradscale.policies.placement import MAX_PREDICTED_SCALE
from gradscale.policies.policy import Need, Observation, Policy, ScaleState
from gradscale.policies.setting_checks import (
    check,
    check_count,
    check_format,
    check_number,
    check_powers_of_two,
    check_scale_range,
)


@dataclass(frozen=True)
class TwoSided(Policy):
    """Halves or doubles the scale by what the histogram shows at both ends of the format.

        upper(S) = share of the non-zero elements in the format's `upper_octaves` topmost octaves,
        or above them
        lost(S)  = share of the non-zero elements below the format's smallest normal number
        overflow, or upper(scale) > upper_share:                        scale /= 2
        else if lost(scale) > lost_share, upper(2 scale) <= upper_share:  scale *= 2
        without a non-zero element:                                     scale stays

    So it moves down before anything overflows, and up only for gradients that half precision
    flushes or rounds coarsely. What an fp16 backward flushed is zero in `.grad` and counted by
    nobody; the subnormal rest shows it.

    Args:
        format: what the gradients are stored in: a `FloatFormat`, a torch dtype or a name.
        upper_octaves: how many octaves at the top should stay (nearly) empty.
        upper_share: the share of elements that may lie there, in [0, 1).
        lost_share: the share of elements that may be subnormal or flushed, in [0, 1); None raises
            the scale whenever the top is empty, as PopART does.
        init_scale: the scale of the first step, a power of two.
        min_scale: the floor, a power of two of at least 2^-126.
        max_scale: the cap, a power of two.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    References:
        Graphcore PopART, automatic loss scaling (`lossscaleupdatex`): one bin edge, no measure of
        the lower end.

    Example:
        >>> from gradscale.histogram import count_exponents
        >>> policy = TwoSided(init_scale=4.0)
        >>> grads = torch.tensor([2.0**-6, 2.0**-20])
        >>> observation = Observation(torch.tensor(0.0), exponents=count_exponents(grads))
        >>> state = policy.update(policy.init(), observation)
        >>> state.scale
        tensor(8.)
    """

    format: FloatFormat | torch.dtype | str = "fp16"
    upper_octaves: int = 3
    upper_share: float = 1e-7
    lost_share: float | None = 1e-3
    init_scale: float = 2.0**16
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_PREDICTED_SCALE

    needs: ClassVar[frozenset[Need]] = frozenset({"exponents"})

    def __post_init__(self) -> None:
        check_format(self)
        check_count(self, "upper_octaves", 1, "The topmost octave is half-open: keep it empty.")
        check_number(self, "upper_share")
        way_out = "Pass 0 to let none lie there."
        check(self, "upper_share", 0 <= self.upper_share < 1, "must lie in [0, 1)", way_out)
        if self.lost_share is not None:
            check_number(self, "lost_share")
            way_out = "Pass None to raise the scale whenever the top is empty."
            check(self, "lost_share", 0 <= self.lost_share < 1, "must lie in [0, 1)", way_out)
        check_scale_range(self, cap_required=True)
        check_powers_of_two(self, "init_scale", "min_scale", "max_scale")

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> ScaleState:
        """`init_scale`, shape `shape`."""
        return ScaleState(torch.full(shape, self.init_scale, dtype=torch.float32, device=device))

    def update(self, state: ScaleState, observation: Observation) -> ScaleState:
        """Half, the same, or double the scale."""
        counts = octave_counts_of(self, observation)
        log2_scale = floor_log2(state.scale)
        upper = self._upper(counts, log2_scale) > self.upper_share
        lowers = (observation.found_inf > 0) | upper
        if self.lost_share is None:
            raises = ~lowers
        else:
            # Only where the doubled scale would not be halved again at once.
            room = self._upper(counts, log2_scale + 1) <= self.upper_share
            raises = ~lowers & room & (self._lost(counts, log2_scale) > self.lost_share)
        # Gradients of nothing but zeros say nothing of the scale; without this they would double
        # it.
        raises = raises & (counts.sum(-1) > 0)
        factor = torch.where(lowers, 0.5, torch.where(raises, 2.0, 1.0))
        return ScaleState((state.scale * factor).clamp(self.min_scale, self.max_scale))

    def _upper(self, counts: Tensor, log2_scale: Tensor) -> Tensor:
        # Octave e holds [2^e, 2^(e+1)): the format's topmost one is its largest exponent.
        first = FloatFormat.of(self.format).max_exponent + 1 - self.upper_octaves
        return _share(counts, _octaves(counts) + log2_scale[..., None] >= first)

    def _lost(self, counts: Tensor, log2_scale: Tensor) -> Tensor:
        # What is flushed and what is rounded coarsely alike: both lie below the smallest normal.
        smallest = FloatFormat.of(self.format).min_exponent
        return _share(counts, _octaves(counts) + log2_scale[..., None] < smallest)


def _octaves(counts: Tensor) -> Tensor:
    return torch.arange(MIN_OCTAVE, MIN_OCTAVE + EXPONENT_BINS, device=counts.device)


def _share(counts: Tensor, chosen: Tensor) -> Tensor:
    part = torch.where(chosen, counts, 0).sum(-1).to(torch.float32)
    return part / counts.sum(-1).to(torch.float32).clamp(min=1)
