"""Notices parameters that were written past torch's count of changes, by way of `.data`.

`p.data.clamp_(…)`, as in the weight clipping of a Wasserstein GAN, is seen by nobody: the masters
go on without it, the next step writes over it, and weights that ought to stay within 0.01 leave.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.callers import level_of_caller
from gradscale.capturing import capturing
from gradscale.half.link import Link
from gradscale.half.rounding import rounded_to
from gradscale.host_copies import HostCopies

FIRST = 2
"""The first step that is looked at; then every step of twice the number.

What writes weights writes them after each step, so that the second finds it. In a million steps it
is twenty looks: each reads masters and parameters once, and nobody waits for what it has found.
"""


class Drift:
    """Compares parameters with their masters now and then, and warns once."""

    def __init__(self) -> None:
        self._steps = 0
        self._next = FIRST
        self._found: HostCopies[Tensor] | None = None

    def look(self, links: Sequence[Link], name: str) -> None:
        """Before a step, once what torch has seen written has been taken over.

        Args:
            links: dense ones that live here as a whole.
            name: of the optimizer, for the warning.
        """
        self._steps += 1
        if self._steps == self._next and links and not capturing():
            self._next *= 2
            with torch.no_grad():
                self._found = HostCopies([_apart(link) for link in links])
        if self._found is not None and self._found.arrived:
            found, self._found = self._found.tensors, None
            # `tolist` reads memory of the host, where they are; `bool` would count as a host read.
            apart = [link for link, flag in zip(links, found, strict=False) if flag.tolist()]
            if apart:
                self._next = 0  # never again
                _warn(apart, name)


def _apart(link: Link) -> Tensor:
    """Whether a parameter is not the rounded master, 0-d; a NaN is nobody's doing here."""
    master = rounded_to(link.master, link.parameter.dtype, saturate=link.saturate)
    differs = (link.parameter != master) & (master == master)
    return differs.any()


def _warn(apart: Sequence[Link], name: str) -> None:
    shape = tuple(apart[0].parameter.shape)
    warnings.warn(
        f"`{name}.step()`: {len(apart)} half-precision parameters, the first of shape {shape}, are "
        "no longer their rounded float32 masters: something wrote them past torch's count of "
        "changes, as `p.data.clamp_(…)` does. The masters go on without it, and are copied over it "
        "now. Write `with torch.no_grad(): p.clamp_(…)`, or to `half.parameters()`.",
        stacklevel=level_of_caller(),
    )
