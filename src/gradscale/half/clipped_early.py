"""Notices gradients that were clipped while they were scaled and in half precision.

Their norm is beyond the range of float16, so that each is multiplied by max_norm / inf: all become
zero, which is finite, and a run goes on for ever without moving a weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from gradscale.callers import level_of_caller
from gradscale.gradients.unscale import tensor_values
from gradscale.half.shared_gradient import Held, SharedGradient
from gradscale.ranks import distributed

LOOKS = 3
"""So many times the host looks at gradients that somebody modified, which it waits for."""


class ClippedEarly:
    """Warns once, and looks only at gradients that were all modified after they had arrived."""

    def __init__(self) -> None:
        self._looks = LOOKS

    def look(self, pending: Sequence[SharedGradient]) -> None:
        """Before gradients in half precision are divided by the scale.

        Args:
            pending: those gradients. Where there are several ranks, DDP writes
                into gradients that have arrived, and nothing is looked at.
        """
        if not self._looks or distributed():
            return
        # Clipping writes them all; whoever writes a few has something else in mind.
        if not all(gradient.held is Held.MODIFIED for gradient in pending):
            return
        grads = [gradient.parameter.grad for gradient in pending]
        if grads[0] is not None and grads[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return
        self._looks -= 1
        if any(bool(tensor_values(grad).any()) for grad in grads if grad is not None):
            return
        self._looks = 0
        warnings.warn(
            "`scaler.unscale_(optimizer)`: something modified the half-precision gradients before "
            "they were unscaled, and all of them are zero now, as after `clip_grad_norm_` where "
            "the norm of scaled gradients is infinite. Clip after `scaler.unscale_(optimizer)`, or "
            "with `scaler.clip_grad_norm_(optimizer, max_norm)`.",
            stacklevel=level_of_caller(),
        )
