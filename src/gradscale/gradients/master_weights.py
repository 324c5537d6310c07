"""Float32 master weights as far as gradients know them: who widens an optimizer's, whose they are.

`half` registers its masters here; whatever reads an optimizer's gradients asks here, and need not
know what a half-precision model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.gradients.unscale import Flags
from gradscale.optimizer_parameters import parameters_of

_MASTERS = "_gradscale_masters"
"""An attribute, and no dictionary of ours: masters hold their optimizer and would never leave it.

Copies and pickles of an optimizer leave it out, as they do hooks.
"""


class MasterWeight(Protocol):
    """A parameter in half precision, and the float32 one that the optimizer updates in its place.

    Attributes:
        parameter: what backward passes give a gradient to.
        master: what the optimizer has in its groups.
        exponent: the gradient is stored at ``2**exponent`` times the loss-scaled one.
    """

    parameter: Tensor
    master: Tensor
    exponent: int

    def replace(self, grad: Tensor | None) -> None:
        """Gives both another gradient."""
        ...


class MasterWeights(Protocol):
    """Those of one optimizer."""

    @property
    def links(self) -> Sequence[MasterWeight]:
        """Each of them."""
        ...

    @property
    def model(self) -> torch.nn.Module | None:
        """What holds the parameters, as long as somebody holds it."""
        ...

    def agree(self) -> None:
        """Gives each master the gradient of its parameter."""
        ...

    def widen_(
        self,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        divided_later: Tensor | None = None,
    ) -> tuple[Flags, set[int]]:
        """Turns half-precision gradients into float32 ones of the masters, in one pass.

        Args:
            inv_scale: what they are multiplied by; None for 1, unchecked.
            found_inf: the flag of its own device; None together with `inv_scale`.
            divided_later: what they will be multiplied by afterwards, to be checked already.

        Returns:
            A flag per device, and the ids of the masters whose gradients are done.
        """
        ...

    def take_changes(self) -> None:
        """Brings the masters in line with parameters that somebody wrote."""
        ...

    def copy_back(self) -> None:
        """Rounds the masters into the parameters."""
        ...


def masters_of(optimizer: Optimizer) -> MasterWeights | None:
    """The masters of an optimizer; None if it updates the model's own parameters.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> print(masters_of(torch.optim.SGD(model.parameters(), lr=0.1)))
        None
    """
    return optimizer.__dict__.get(_MASTERS)


def register_masters(optimizer: Optimizer, masters: MasterWeights | None) -> None:
    """Makes these the masters of an optimizer; None for none any more."""
    if masters is None:
        optimizer.__dict__.pop(_MASTERS, None)
    else:
        optimizer.__dict__[_MASTERS] = masters


def names_by(optimizer: Optimizer) -> dict[int, str]:
    """The names of a half-precision model's parameters, by id; nothing for any other optimizer."""
    masters = masters_of(optimizer)
    model = None if masters is None else masters.model
    return {} if model is None else {id(p): name for name, p in model.named_parameters()}


def trained_by(optimizer: Optimizer, parameters: Iterable[Tensor] | None = None) -> list[Tensor]:
    """The tensors to which backward passes give gradients: parameters in the place of masters.

    Args:
        optimizer: owns `parameters`.
        parameters: some of its own, in any order; None for all.
    """
    parameters = parameters_of(optimizer) if parameters is None else list(parameters)
    masters = masters_of(optimizer)
    if masters is None:
        return parameters
    own = {id(link.master): link.parameter for link in masters.links}
    return [own.get(id(parameter), parameter) for parameter in parameters]
