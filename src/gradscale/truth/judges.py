"""How many elements of a tensor were lost: by the truth, by a probe, by what is left."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gradscale.backward.measurements import Counts
from gradscale.emulation.direction_formats import carrier
from gradscale.exponents import ceil_exponent
from gradscale.formats import FloatFormat
from gradscale.plans.window import flushed_share, with_flushed
from gradscale.truth.gradients import Gradients
from gradscale.truth.rows_of import Found, Judge, Pair, counts_of
from gradscale.truth.vanished import vanished_gradients

NOISE = 2.0**-24
"""Float32's unit roundoff: below it, against the largest of a module, a gradient may be noise."""

FLUSHED_ON_THE_WAY = 2.0**10
"""How far above the flush threshold a gradient may be that vanished because its terms had.

What is zero although it is larger was not flushed: rounded activations moved it across a kink, such
as that of a ReLU.
"""


def by_truth(pair: Pair, format: FloatFormat, counts: Counts) -> Found:
    """Not zero in the reference, zero here, and small enough for that to be the format's doing."""
    del counts
    true = cast(Tensor, pair.other).reshape(pair.held.shape)
    held = pair.read(format)
    # An infinity in the reference is the model's own: no format is to blame for the zero.
    lost = (true != 0) & (held == 0) & torch.isfinite(true)
    # Elements that are noise in the reference may be zero here by chance.
    lost &= _told(pair, true)
    if bool(torch.isfinite(held).logical_and_(held != 0).any()):
        # The exponent of a plan is not known here; what survived tells it.
        size, kept = true.abs(), (held != 0) & torch.isfinite(held)
        # The smallest float32 keeps 0 / 0 out: nothing survived that is not zero in truth, too.
        rise = held[kept].to(size.dtype).abs().sum() / size[kept].sum().clamp(min=1e-45)
        limit = format if pair.product else carrier(format)
        lost &= size * rise <= FLUSHED_ON_THE_WAY * limit.flush_threshold
    return Found(int(lost.sum()), counts_of(true, 1.0))


def _told(pair: Pair, values: Tensor) -> Tensor:
    """Which elements are more than the rounding noise of float32."""
    if pair.parameter:
        known = torch.zeros_like(values, dtype=torch.bool) if pair.zeros is None else pair.zeros
        return ~known.reshape(values.shape)
    size = torch.where(torch.isfinite(values), values.abs(), 0.0)
    return size > NOISE * size.max() if size.numel() else size > 0


def by_probe(higher_scale: float) -> Judge:
    """Zero here, and neither zero nor overflowing at the higher scale: a lower bound."""

    def judge(pair: Pair, format: FloatFormat, counts: Counts) -> Found:
        del counts
        high = cast(Tensor, pair.other).reshape(pair.held.shape)
        seen = torch.isfinite(high) & (pair._replace(held=high).read(format) != 0)
        lost = seen & (pair.read(format) == 0) & _told(pair, high)
        return Found(int(lost.sum()), counts_of(high, higher_scale))

    return judge


def by_octaves(stored: Gradients, format: FloatFormat) -> Judge:
    """What must have lain below the octaves that are left: an estimate."""
    exponent = ceil_exponent(stored.scale)
    # For the whole pass at once: what came before a tensor tells whether its zeros are true.
    gone = vanished_gradients(stored, format)

    def judge(pair: Pair, format: FloatFormat, counts: Counts) -> Found:
        if id(pair.held) in gone:
            return Found(counts.zero, counts)
        # Two roundings: into storage, where nobody saw what went, and then, by a product, from it.
        whole = with_flushed(counts, pair.storage(format), exponent)
        unseen = max(0, whole.nonzero - counts.nonzero)
        read = round(flushed_share(counts, format, exponent) * counts.nonzero)
        return Found(unseen + read if pair.product else unseen, whole)

    return judge
