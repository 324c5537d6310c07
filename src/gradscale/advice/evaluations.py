"""The closure of a float32 step: for optimizers that look at other weights before they step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradscale.truth import Gradients, reference
from gradscale.truth.one_pass import Loss


class Evaluations:
    """Sets gradients and returns the loss; runs a pass only where the weights have moved.

    Args:
        model: float32.
        loss: of the model.
        known: the gradients at the weights as they are now.

    Example:
        >>> model, passes = nn.Linear(1, 1), []
        >>> def loss(model):
        ...     passes.append(model)
        ...     return model(torch.ones(1, 1)).square().sum()
        >>> evaluate = Evaluations(model, loss, reference(model, loss))
        >>> _ = torch.optim.Adam(model.parameters()).step(evaluate)
        >>> len(passes)
        1
    """

    def __init__(self, model: nn.Module, loss: Loss, known: Gradients) -> None:
        self._model, self._loss = model, loss
        self._known, self._versions = known, self._now()

    def _now(self) -> list[int]:
        return [parameter._version for parameter in self._model.parameters()]

    def __call__(self) -> Tensor:
        """The loss; the gradients are set."""
        if self._now() != self._versions:
            self._known = reference(self._model, self._loss, draw_alike=True)
            self._versions = self._now()
        for name, parameter in self._model.named_parameters():
            parameter.grad = self._known.parameters.get(name)
        return torch.tensor(self._known.loss)
