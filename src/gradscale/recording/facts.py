"""What is known of a step apart from what was measured, whatever the scaler."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Facts(NamedTuple):
    """One step, on the host.

    Attributes:
        scale: the loss scale that it was taken at.
        skipped: whether an optimizer did not step.
        reason: why.
        overflow: whether the policy was shown an overflow.
        asked: whether the policy chose the next scale.
        guessed: whether the reason is a guess, which the loss may correct.
        optimizers: with several, whether each skipped.
        dropped: micro-batches that were left out.
        micro_batches: how many there were, where some were left out.
        culprits: names of parameters whose gradients were not finite.
        groups: how many loss scales were in use.
        amax: the largest finite magnitude of the unscaled gradients, if it was measured.
        exponents: their histogram, if it was measured.
    """

    scale: float = 1.0
    skipped: bool = False
    reason: str | None = None
    overflow: bool = False
    asked: bool = True
    guessed: bool = False
    optimizers: tuple[bool, ...] = ()
    dropped: int = 0
    micro_batches: int = 0
    culprits: tuple[str, ...] = ()
    groups: int = 1
    amax: float | None = None
    exponents: Tensor | None = None
