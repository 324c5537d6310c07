"""The formulas of adaptive loss scaling: how much one layer should scale the gradient it received.

Zhao, Vogel, Ahmed, *Adaptive Loss Scaling for Mixed Precision Training*, arXiv 1910.12385, 2019,
as in the authors' code. All rules model the elements by a distribution, ask for the factor that
leaves at most a share `threshold` below the smallest float16, never ask for less than 1, and cap
that where the largest element would overflow:

    raw = min(max(a_low, 1), a_up),        1 for a tensor of zeros

    normal        a_low = u_min / (kappa * s),    kappa = sqrt(2) * erfinv(threshold)
      gradient    s = std(g)
                  a_up = u_max / max|g|
      product     s = sqrt((var g + mean(g)^2) * (var w + mean(w)^2))
                  a_up = u_max / (fan * max|g| * max|w|)
      output      the s of product, times sqrt(fan / 2); a_up as product
    lognormal     ln a_low = ln u_min - m - d * sqrt(2) * erfinv(2 * threshold - 1)
                  with the mean m and the std d of ln|x| over non-zero x
                  a_up = u_max / max|x|

The `s` of `product` is the root mean square of a scalar product, not its standard deviation: the
published code leaves out the last term, and so does this rule. `fan` is the number of products
that one output sums. Rounding is downwards to a power of two, by `frexp`: a logarithm in float32
can be off by one just below one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from gradscale.backward.measurements import Counts

# As published, in place of 2^-24 = 5.96e-8, the smallest subnormal of float16.
UNDERFLOW = 6.0e-8
OVERFLOW = 65504.0


@dataclass(frozen=True)
class Statistics:
    """What the rules know of a tensor; standard deviations are those of the population.

    Attributes:
        mean: over all elements, exact zeros included.
        std: over all elements, exact zeros included.
        amax: the largest magnitude.
        log_mean: of ``ln|x|`` over the elements that are not zero.
        log_std: of ``ln|x|`` over the elements that are not zero.
    """

    mean: float
    std: float
    amax: float
    log_mean: float = 0.0
    log_std: float = 0.0

    @staticmethod
    def of(counts: Counts, log2_scale: int = 0) -> Statistics:
        """The statistics of a measured tensor, once scaled by ``2**log2_scale``.

        Raises:
            ValueError: if it was measured without moments.

        Example:
            >>> Statistics.of(Counts(3.0, octaves=(1, 1), moments=(2.0, 10.0, 1.1, 1.2))).std
            2.0
        """
        if counts.moments is None:
            raise ValueError(
                "`Adaptive` needs the moments of the gradients, which these measurements lack. "
                "Measure with `measure(..., moments=True)`."
            )
        total, squares, logs, log_squares = counts.moments
        mean, std = _mean_and_std(total, squares, counts.nonzero + counts.zero)
        log_mean, log_std = _mean_and_std(logs, log_squares, counts.nonzero)
        factor = math.ldexp(1.0, log2_scale)
        return Statistics(
            mean=mean * factor,
            std=std * factor,
            amax=counts.amax * factor,
            log_mean=log_mean + log2_scale * math.log(2),
            log_std=log_std,
        )


def _mean_and_std(total: float, squares: float, count: int) -> tuple[float, float]:
    if count == 0:
        return 0.0, 0.0
    mean = total / count
    # Of equal numbers the difference of two roundings may fall below zero.
    return mean, math.sqrt(max(0.0, squares / count - mean * mean))


@dataclass(frozen=True)
class Bounds:
    """The smallest factor that meets the threshold and the largest that does not overflow."""

    low: float
    up: float

    @property
    def raw(self) -> float:
        """At least 1 unless that overflows: the overflow cap comes second."""
        return min(max(self.low, 1.0), self.up)


_NO_CHANGE = Bounds(1.0, math.inf)


def gradient_bounds(gradient: Statistics, threshold: float, u_max: float = OVERFLOW) -> Bounds:
    """V2: a normal distribution with the standard deviation of the gradient alone.

    Example:
        >>> round(gradient_bounds(Statistics(0.0, 1e-6, 1e-6), 1e-3).raw, 3)
        47.873
    """
    if gradient.std == 0 or gradient.amax == 0:
        return _NO_CHANGE
    return Bounds(UNDERFLOW / (kappa(threshold) * gradient.std), u_max / gradient.amax)


def product_bounds(
    gradient: Statistics,
    weight: Statistics,
    fan: int,
    threshold: float,
    u_max: float = OVERFLOW,
    *,
    summed: bool = False,
) -> Bounds:
    """V1, and V3 if `summed`: a normal distribution of one product, or of the sum of `fan`.

    Example:
        >>> g, w = Statistics(0.0, 1e-6, 1e-6), Statistics(0.0, 0.02, 0.02)
        >>> round(product_bounds(g, w, 4608, 1e-3).raw, 2)
        2393.65
        >>> round(product_bounds(g, w, 4608, 1e-3, summed=True).raw, 4)
        49.8678
    """
    # The root of each factor's mean square, std^2 + mean^2; those of independent ones multiply.
    rms = math.hypot(gradient.std, gradient.mean) * math.hypot(weight.std, weight.mean)
    if summed:
        # The variance of a sum of `fan` products, halved because a ReLU lets half of them through.
        rms *= math.sqrt(0.5 * fan)
    if rms == 0:
        return _NO_CHANGE
    up = u_max / fan / (gradient.amax * weight.amax)
    return Bounds(UNDERFLOW / (kappa(threshold) * rms), up)


def lognormal_bounds(gradient: Statistics, threshold: float, u_max: float = OVERFLOW) -> Bounds:
    """A log-normal distribution of the magnitudes, for a cast from float32 to float16.

    Example:
        >>> round(lognormal_bounds(Statistics(0.0, 1.0, 1.0, -18.0, 2.0), 1e-3).low, 2)
        1903.68
    """
    if gradient.amax == 0:
        return _NO_CHANGE
    exponent = (
        math.log(UNDERFLOW)
        - gradient.log_mean
        - gradient.log_std * NormalDist().inv_cdf(threshold)  # sqrt(2) * erfinv(2 * threshold - 1)
    )
    # From 709.8 on `math.exp` raises.
    return Bounds(math.exp(min(exponent, 700.0)), u_max / gradient.amax)


def kappa(threshold: float) -> float:
    """``sqrt(2) * erfinv(threshold)``: a normal x has ``P(|x| < kappa * std) = threshold``.

    Example:
        >>> round(kappa(1e-3), 11)
        0.00125331447
    """
    return NormalDist().inv_cdf((1 + threshold) / 2)


def capped(
    raw: float,
    scale: float,
    scale_upper_bound: float | None = None,
    accum_upper_bound: float | None = None,
) -> float:
    """`raw` limited so that neither it nor the scale it leads to exceeds its bound.

    Args:
        raw: the factor that a rule asked for.
        scale: the scale that has accumulated before it.
        scale_upper_bound: of the factor; None for none.
        accum_upper_bound: of ``factor * scale``; None for none.

    Example:
        >>> capped(47.87, 256, scale_upper_bound=16, accum_upper_bound=1024)
        4.0
    """
    if accum_upper_bound is not None:
        raw = min(raw, accum_upper_bound / scale)
    if scale_upper_bound is not None:
        raw = min(raw, scale_upper_bound)
    return raw


def fork_exponent(
    exponents: Sequence[int],
    maxima: Sequence[float],
    u_max: float = OVERFLOW,
    *,
    bound_sum: bool = True,
) -> int:
    """The common exponent of gradients that are about to be added: the largest that fits.

    The exponents of the branches are tried from the largest down; if none fits, the smallest is
    lowered until it does.

    Args:
        exponents: of each branch: it is stored as ``2**exponent`` times the true gradient.
        maxima: of each branch, the largest magnitude as it is stored.
        u_max: the largest value of the format.
        bound_sum: whether the sum of the maxima must fit. The published rule asks only that each
            branch does (False), so that a sum of n could overflow n-fold.

    Raises:
        ValueError: if a maximum is not finite, so that nothing fits.

    Example:
        >>> fork_exponent([2, 0], [1.0, 30000.0])
        0
        >>> fork_exponent([0, 0], [60000.0, 40000.0])
        -1
    """
    if not all(math.isfinite(maximum) for maximum in maxima):
        raise ValueError(
            f"`fork_exponent(maxima={list(maxima)})` must be finite. Pass the largest finite "
            "magnitudes, and treat an overflow as such."
        )
    true = [math.ldexp(m, -e) for e, m in zip(exponents, maxima, strict=True)]
    bound = sum(true) if bound_sum else max(true)
    for exponent in sorted(set(exponents), reverse=True):
        if math.ldexp(bound, exponent) < u_max:
            return exponent
    exponent = min(exponents)
    while math.ldexp(bound, exponent) >= u_max:
        exponent -= 1
    return exponent
