"""What a bad step leaves in a model though the optimizer skipped it, and what keeps steps bad."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from weakref import WeakSet

import torch

from gradscale.callers import level_of_caller
from gradscale.gradients.master_weights import masters_of, trained_by
from gradscale.outcomes.outcome import OptimizerOutcome

LARGEST_HALF = torch.finfo(torch.float16).max


class KnownModels:
    """Models whose parts the user has named, looked at after a bad step only."""

    def __init__(self) -> None:
        self._models: WeakSet[torch.nn.Module] = WeakSet()
        self._warned: set[str] = set()

    def know(self, model: torch.nn.Module) -> None:
        """Has this one looked at, too."""
        self._models.add(model)

    def warn_of_buffers(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Names buffers, such as running statistics, that are not finite, each once. Host reads.

        Args:
            optimizer: that was skipped; its half-precision model is known, too.
        """
        masters = None if optimizer is None else masters_of(optimizer)
        if masters is not None and masters.model is not None:
            self.know(masters.model)
        found = [
            name
            for model in self._models
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all())
        ]
        new = [name for name in found if name not in self._warned]
        self._warned.update(new)
        if new:
            warnings.warn(
                f"the forward pass of a skipped step has left {', '.join(map(repr, new[:5]))} "
                "infinite or NaN: the weights are as they were, but evaluation will not be "
                "finite. Reset it (`module.reset_running_stats()`), load it from a checkpoint, or "
                "check inputs before the model sees them.",
                stacklevel=level_of_caller(),
            )


def beyond_half(outcome: OptimizerOutcome, names: Iterable[tuple[int, str]] = ()) -> str:
    """Names weights that float16 does not hold, for which autocast makes every loss infinite."""
    optimizer = outcome.optimizer
    if optimizer is None:
        return ""
    known = dict(names)
    for number, parameter in enumerate(trained_by(optimizer)):
        largest = parameter.detach().abs().amax().item() if parameter.numel() else 0.0
        if LARGEST_HALF < largest < float("inf"):
            name = known.get(id(parameter), f"parameter {number}")
            return (
                f" The weight {name!r} holds {largest:g}, beyond float16's {LARGEST_HALF:g}: "
                "autocast makes it infinite. Use bfloat16, weight decay, or a lower learning rate."
            )
    return ""
