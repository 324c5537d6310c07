"""The truth, second way: the same batch once more at a higher scale."""

from __future__ import annotations

from torch import Tensor, nn

from gradscale.formats import FloatFormat
from gradscale.plans.window import highest_exponent
from gradscale.truth.gradients import Gradients
from gradscale.truth.one_pass import Loss, one_pass

MOST_OCTAVES = 30
"""More would lift a gradient over the whole range of float16."""


def probe(
    model: nn.Module,
    loss: Loss,
    stored: Gradients,
    format: FloatFormat,
    octaves: int | None = None,
) -> Gradients:
    """The pass of `stored` again at a scale that is `octaves` powers of two higher.

    What is zero in `stored` and not here was lost. What is lost at both scales stays unseen, so
    that this is a lower bound; what overflows here says nothing.

    Args:
        model: as for `stored`.
        loss: as for `stored`.
        stored: the pass in question.
        format: what products read their gradient in.
        octaves: None: as many as keep every gradient finite, at least one.

    Raises:
        ValueError: `octaves` is below 1.
    """
    if octaves is not None:
        if octaves < 1:
            raise ValueError(f"`octaves={octaves}` must be at least 1: a probe looks higher.")
        return one_pass(model, loss, stored.scale * 2.0**octaves, draw_alike=True)
    rise = max(1, min(MOST_OCTAVES, _headroom(stored, format)))
    while True:
        higher = one_pass(model, loss, stored.scale * 2.0**rise, draw_alike=True)
        # What is not captured, inside of an attention, may overflow first.
        if rise == 1 or higher.finite:
            return higher
        rise //= 2  # of the octaves: at most five passes


def _headroom(stored: Gradients, format: FloatFormat) -> int:
    """Octaves by which everything may rise before something overflows, less one."""
    held = [(t, FloatFormat.of(t.dtype)) for t in stored.modules.values()]
    held += [(stored.modules[output], format) for output in stored.products & stored.modules.keys()]
    found = [highest_exponent(_amax(t), f) for t, f in held if t.numel()]
    return min(found, default=MOST_OCTAVES) - 1


def _amax(tensor: Tensor) -> float:
    return float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
