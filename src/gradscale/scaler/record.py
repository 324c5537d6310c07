"""One optimizer in one step: where its gradients are, and what is known of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.accumulate import MicroBatches
from gradscale.gradients.step_fate import StepFate
from gradscale.gradients.unscale import Flags
from gradscale.outcomes.outcome import OptimizerOutcome


class At(IntEnum):
    """Where an optimizer's gradients are; the arrows are the only ways between.

        SCALED --divide--> DIVIDED --take--> STEPPED
        SCALED --keep----> KEPT ----take---> STEPPED      fused optimizers, `undo`
        SCALED --add-----> SUMMED --deliver-> DIVIDED     `accumulate_`
        DIVIDED, KEPT --backward--> MIXED                 a step that was begun and went on
        SCALED <--evaluate--> DIVIDED                     within a closure: `Record.evaluating`

    `EVALUATING` is no place of gradients: in the table of refusals it stands for a closure that
    runs, wherever they are.
    """

    SCALED = 0
    SUMMED = 1
    DIVIDED = 2
    KEPT = 3
    MIXED = 4
    STEPPED = 5
    EVALUATING = 6


# As names, because to look a member up in its enumeration takes longer than to call a function.
SCALED, DIVIDED = At.SCALED, At.DIVIDED
_READY, _UNSCALED, _STEPPED = OptState.READY, OptState.UNSCALED, OptState.STEPPED
_TORCHS = (_READY, _READY, _UNSCALED, _UNSCALED, _UNSCALED, _STEPPED)
"""Torch's word for each, by number."""
_OURS = {_READY: At.SCALED, _UNSCALED: At.DIVIDED, _STEPPED: At.STEPPED}
"""What torch's words mean where others wrote them."""
_put = dict[int, "Record"].__setitem__


class Record(dict[str, Any]):
    """Torch's record of an optimizer, which other code may write, and beside it what is ours.

    `record["stage"]` and `record["found_inf_per_device"]` are torch's entries and stay entries;
    everything else is an attribute, so that a type checker sees it.

    Attributes:
        evaluating: whether a closure of this optimizer is running.
        kept: whether they stay at S for good, because the optimizer's own numbers absorb it.
        divisor: what a fused optimizer is to divide by, float32 0-d; None unless clipping said so.
        sums: of the micro-batches, until they become the gradient.
        dropped: how many micro-batches were left out; None if none may be.
        overflowed: whether the scale is to blame for one of those, as a flag.
        added: how many micro-batches were summed, or dropped.
        empty: whether it stepped without any gradient, in the first step of a loop.
        losses: how many losses of this step earlier micro-batches have accounted for.
        beyond: a flag of quotients that their dtype does not hold, which no scale helps.
        unrepresentable: the same, once the host knows it.
        outcome: what became of the step.

    Example:
        >>> record = Record()
        >>> record.move(At.DIVIDED)
        >>> record["stage"].name, record.at.name
        ('UNSCALED', 'DIVIDED')
        >>> record["stage"] = OptState.READY  # by somebody else
        >>> record.at.name
        'SCALED'
    """

    # What every step sets has a slot; the rest is made where it is needed, from these defaults.
    __slots__ = ("__dict__", "_at", "outcome")

    outcome: OptimizerOutcome | None
    evaluating = False
    kept = False
    unrepresentable = False
    added = 0
    empty = False
    losses = 0
    divisor: Tensor | None = None
    sums: MicroBatches | None = None
    dropped: Tensor | None = None
    overflowed: Tensor | None = None
    beyond: Tensor | None = None

    def __init__(self) -> None:
        self._at, self.outcome = SCALED, None
        self["stage"] = _READY
        self["found_inf_per_device"] = {}

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Record:
        """A record that somebody else has made of torch's entries."""
        if isinstance(given, Record):
            return given
        record = cls()
        record.update(given)
        return record

    @property
    def at(self) -> At:
        """Where the gradients are; what other code has written into torch's entry holds."""
        stage = self["stage"]
        return self._at if stage is _TORCHS[self._at] else _OURS[stage]

    def move(self, at: At, flags: Flags | None = None) -> None:
        """They are there from now on, with these flags if any are given."""
        self._at = at
        self["stage"] = _TORCHS[at]
        if flags is not None:
            self["found_inf_per_device"] = flags

    def stepped(self) -> None:
        """The optimizer has stepped, or was kept from it; where its gradients were is kept."""
        self["stage"] = _STEPPED

    @property
    def flags(self) -> Flags:
        """By device: above 0 if a gradient was not finite."""
        return self["found_inf_per_device"]

    @flags.setter
    def flags(self, flags: Flags) -> None:
        self["found_inf_per_device"] = flags

    @property
    def untouched(self) -> bool:
        """Whether its gradients are where the backward pass has left them."""
        return self["stage"] is _READY

    @property
    def complete(self) -> bool:
        """Whether its gradients are handled, so that a backward pass must leave them alone."""
        return self["stage"] is _UNSCALED and not self.evaluating

    def left_at(self, scale: Tensor) -> Tensor | StepFate | None:
        """The scale of its gradients after the step; None if they were divided for certain.

        An optimizer that took the scale into its own numbers leaves them scaled. A fused one
        divides while it steps: it leaves them scaled only if it skips, which the outcome, still on
        the device, tells whoever comes to need it.

        Args:
            scale: of the step that ends.
        """
        outcome, divided = self.outcome, self._at is DIVIDED
        if divided and not self.kept:
            return None
        if self.kept or (outcome is None and self.divisor is not None):
            return scale.clone()
        if outcome is None:
            return None
        if outcome.settled:
            return scale.clone() if outcome.skipped else None
        return outcome


class Records(defaultdict[int, Record]):
    """The records of a step by `id(optimizer)`; what others put in becomes a `Record`."""

    def __init__(self, given: Mapping[int, Mapping[str, object]] | None = None) -> None:
        super().__init__(Record)
        for key, record in (given or {}).items():
            self[key] = record

    def __missing__(self, key: int) -> Record:
        record = Record()
        _put(self, key, record)  # not through `self[key] =`, a call more in every step
        return record

    def __setitem__(self, key: int, record: Mapping[str, object]) -> None:
        super().__setitem__(key, Record.of(record))

    def copy(self) -> Records:
        """Another dictionary of the same records, for who puts them aside for a while."""
        return Records(self)

    def __copy__(self) -> Records:
        return Records(self)

    def __reduce__(self) -> tuple[object, ...]:
        return Records, (dict(self),)
