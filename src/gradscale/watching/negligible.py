"""Gradients of parameters that are zero up to rounding, recognized in the first measured passes.

That a sum cancels is a matter of the network, not of the step: two passes decide. What they say of
a whole parameter sets its row apart; what they say of a part, as of the keys in a fused bias of
queries, keys and values, counts as the true zeros that these elements are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from gradscale.backward.cancellation import MOST, Cancellations, mostly
from gradscale.backward.graph import Walk
from gradscale.backward.names import ParameterName

PASSES = 2
"""In how many passes all sums are looked at. One random sum in twenty looks as if it canceled."""

_FUSED = 3  # queries, keys and values


class NegligibleState(TypedDict):
    """How many passes were looked at, and what they said of each parameter."""

    passes: int
    negligible: dict[str, Tensor]


class Negligible:
    """Which elements of which parameters are zero up to rounding; on the device."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}
        self._passes = 0

    def state(self) -> NegligibleState:
        """What `load` goes on from."""
        return {"passes": min(self._passes, PASSES), "negligible": dict(self._known)}

    def load(self, state: NegligibleState, device: torch.device) -> None:
        """Goes on from `state`."""
        self._passes = state["passes"]
        self._known = {name: zeros.to(device) for name, zeros in state["negligible"].items()}

    def begin(self, walked: Walk, names: Mapping[int, ParameterName]) -> Recognizing:
        """A pass is about to run.

        Args:
            walked: its graph and live nodes.
            names: of the model's parameters, by `id`.
        """
        # Looking takes reductions of whole gradients, so only the first passes do.
        sums = Cancellations(walked) if self._passes < PASSES else None
        self._passes += 1
        return Recognizing(self._known, sums, {name.name: key for key, name in names.items()})


class Recognizing:
    """One pass, in which sums may still have to be looked at."""

    def __init__(
        self, known: dict[str, Tensor], sums: Cancellations | None, keys: Mapping[str, int]
    ) -> None:
        self._known = known
        self._sums = sums
        self._keys = keys

    def cleaned(self, name: str, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """A parameter's gradient without what is zero up to rounding in a part of it.

        To be called once its sums have been taken, as it arrives at the parameter.

        Returns:
            The gradient, itself where nothing is known of it or all of it is negligible, and
            whether all of it is, as a 0-d tensor, if that is known.
        """
        zeros = self._zeros(name)
        if zeros is None or zeros.numel() != gradient.numel():
            return gradient, None
        if gradient.dtype.itemsize < _SINGLE:
            zeros = _by_parts(zeros)
        zeros, whole = zeros.reshape(gradient.shape), mostly(zeros)
        return torch.where(zeros & ~whole, 0.0, gradient), whole

    def _zeros(self, name: str) -> Tensor | None:
        known = self._known.get(name)
        sums = None if self._sums is None else self._sums._sums.get(self._keys.get(name, 0))
        found = None if sums is None else sums.negligible()
        if found is not None:
            # Both passes must say so: a random sum is that small in one pass of twenty.
            self._known[name] = known = found if known is None else found & known
        return known

    def end(self) -> None:
        """The pass has ended."""
        if self._sums is not None:
            self._sums.remove()


_SINGLE = torch.float32.itemsize  # bytes


def _by_parts(zeros: Tensor) -> Tensor:
    """In half precision a single sum may round to nothing; `MOST` of a third of them does not."""
    if zeros.numel() % _FUSED:
        return mostly(zeros).expand(zeros.numel())
    thirds = zeros.reshape(_FUSED, -1)
    return (thirds.to(torch.float32).mean(1, keepdim=True) >= MOST).expand(thirds.shape)
