"""How far the gradients of a few heavy steps go beyond those of the others."""

from __future__ import annotations

from typing import NamedTuple


class Tail(NamedTuple):
    """What overflows have taught of a graph whose largest gradients are rarely measured.

    A backward pass is linear in the gradient of the loss, so a step that is heavy at one node is
    taken to be heavy at all of them.

    Attributes:
        reach: octaves by which gradients went, at least, beyond all that was measured.
        share: of the steps, how many were lost to that.

    Example:
        >>> Tail(reach=5, share=0.01).known, Tail().known
        (True, False)
    """

    reach: int = 0
    share: float = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was learned."""
        return self.reach > 0


NO_TAIL = Tail()
"""Nothing was learned: what was measured is all there is."""
