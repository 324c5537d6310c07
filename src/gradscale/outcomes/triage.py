"""Why a step was skipped: bad weights, bad data, a bad loss, or a scale that is too high.

Runs only after a bad step; a good step pays nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gradscale.gradients.master_weights import names_by, trained_by
from gradscale.gradients.unscale import gradient_values
from gradscale.nested_tensors import tensors_in

Reason = Literal[
    "overflow", "nonfinite_gradient", "nonfinite_loss", "nonfinite_parameter", "nonfinite_input"
]
# Ranks that found different reasons agree on the last of them here, by its number.
REASONS: tuple[Reason, ...] = get_args(Reason)


class Culprit(NamedTuple):
    """A tensor that held non-finite elements.

    Attributes:
        name: the parameter's name, or ``group 0, parameter 3`` if it has none.
        nonfinite: how many of its elements are infinite or NaN.
        elements: how many it has.
    """

    name: str
    nonfinite: int
    elements: int

    def __str__(self) -> str:
        return f"{self.name}: {self.nonfinite} of {self.elements} elements"


def find_reason(
    parameters: Sequence[Tensor],
    losses: Sequence[Tensor],
    inputs: object,
    *,
    others: Sequence[Tensor] = (),
    left_over: Sequence[Tensor] = (),
) -> Reason:
    """The root cause of a non-finite gradient, the deepest cause first. Reads the host.

    If the loss is finite, only the scale can be to blame: an infinite parameter or input that did
    not reach the loss, such as an attention mask, is no cause. If it is not, a parameter that is
    not finite explains everything after it, and an input explains the loss.

    Args:
        parameters: the optimizer's.
        losses: what was given to `scaler.scale` in this step, before scaling; may be empty.
        inputs: what was given as `scaler.scale(..., inputs=)`: tensors in any nesting, or None.
        others: losses that may depend on the scale: that one is not finite may be its fault.
        left_over: flags of gradients that were there before the backward pass; above 0 if one was
            not finite.
    """
    if (losses or others) and all_finite([*losses, *others]):
        return "nonfinite_gradient" if any(flag.item() for flag in left_over) else "overflow"
    if losses and all_finite(losses):  # only a loss that may depend on the scale is not
        return "overflow"
    if not all_finite(parameters):
        return "nonfinite_parameter"
    if not all_finite(tensors_in(inputs)):
        return "nonfinite_input"
    return "nonfinite_loss" if losses else "overflow"


UNNAMED = re.compile(r"group \d+, parameter \d+")
"""What a parameter is called that nobody has named."""


def find_culprits(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    learn: Callable[[Sequence[Tensor]], object] = len,
) -> list[Culprit]:
    """The parameters whose gradients are not finite, as long as the gradients are still there.

    Args:
        optimizer: owns the parameters; its groups' ``param_names`` are used where they exist.
        names: parameter names by ``id(parameter)``; they come first.
        learn: is told of parameters without a name before they are called by their number, and may
            add to `names`.
    """
    own = names_by(optimizer)
    if not own and any("param_names" not in group for group in optimizer.param_groups):
        learn(trained_by(optimizer))
    names = {**own, **names}
    found: list[Culprit] = []
    for group_index, group in enumerate(optimizer.param_groups):
        own_names: Sequence[str] | None = group.get("param_names")
        for index, parameter in enumerate(trained_by(optimizer, group["params"])):
            values = gradient_values(parameter)
            if values is None:
                continue
            nonfinite = int((~torch.isfinite(values)).sum())
            if nonfinite:
                # Torch's own names for named parameters, where the user built the optimizer from
                # them.
                fallback = (
                    own_names[index] if own_names else f"group {group_index}, parameter {index}"
                )
                found.append(Culprit(names.get(id(parameter), fallback), nonfinite, values.numel()))
    return found


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every element is finite. Reads the host."""
    for tensor in tensors:
        # A shard alone: who must agree with other ranks does so once, on the reason.
        local: Tensor = getattr(tensor, "_local_tensor", tensor)
        if local.is_sparse:
            local = local._values()
        # `isfinite` knows no other layouts.
        if local.layout is not torch.strided:
            continue
        if not bool(torch.isfinite(local.detach()).all()):
            return False
    return True
