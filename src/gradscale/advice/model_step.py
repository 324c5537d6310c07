"""What is advised on: a model, its batches and its loss, as the user hands them over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradscale.optimizer_parameters import parameters_of

LossOfBatch = Callable[[nn.Module, Any], Tensor]
Parameters = list[nn.Parameter]
MakeOptimizer = Callable[[Parameters], torch.optim.Optimizer]

_SHAPE = "`(model, batches, loss)` or `(model, batches, loss, optimizer)`"


@dataclass(frozen=True)
class ModelStep:
    """A model, its batches and its loss.

    Attributes:
        model: any module, in the mode it trains in.
        batches: an iterable; one item is what `loss` understands.
        loss: of the model and a batch: a scalar tensor. It enters no autocast, and calls no
            `backward`: the precision is chosen outside.
        optimizer: of the parameters; None for Adam at a learning rate of 1e-3.
        call: how the user wrote it, for messages.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> step = ModelStep.of((model, [torch.ones(2, 4)], lambda m, x: m(x).mean()))
        >>> step.model is model
        True
    """

    model: nn.Module
    batches: Iterable[object]
    loss: LossOfBatch
    optimizer: MakeOptimizer | None = None
    call: str = "advise(model_step)"

    def make(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Raises:
            TypeError: the fourth part returned none, or one of other parameters.
        """
        if self.optimizer is None:
            return torch.optim.Adam(parameters, lr=1e-3)
        made = self.optimizer(parameters)
        if not hasattr(made, "param_groups"):
            raise TypeError(f"`{self.call}`: the fourth part returned {_what(made)}, no optimizer.")
        own = {id(parameter) for parameter in parameters_of(made)}
        if own.isdisjoint(map(id, parameters)):
            raise TypeError(
                f"`{self.call}`: the fourth part returned {type(made).__name__} of parameters that "
                "it was not given. A copy of the model is trained: make it of its argument."
            )
        return made

    @staticmethod
    def of(given: object, call: str = "advise(model_step)") -> ModelStep:
        """A triple, a quadruple, a function that returns one, or a `ModelStep` itself.

        Raises:
            TypeError: it is none of these, or one of its parts is of the wrong kind.
            ValueError: the model has no parameter to train.
        """
        if callable(given) and not isinstance(given, ModelStep | nn.Module):
            given = given()
        if isinstance(given, ModelStep):
            return given
        parts = cast("tuple[Any, ...]", given if isinstance(given, tuple | list) else ())
        if len(parts) not in (3, 4):
            raise TypeError(
                f"`{call}` got {_what(given)}; it needs {_SHAPE}, or a function that returns that."
            )
        step = ModelStep(*parts[:3], *parts[3:], call=call)
        step._check()
        return step

    def _check(self) -> None:
        refusals = (
            (_is_model(self.model), "first", self.model, _A_MODEL),
            (_iterable(self.batches), "second", self.batches, _BATCHES),
            (callable(self.loss), "third", self.loss, _A_LOSS),
            (self.optimizer is None or callable(self.optimizer), "fourth", self.optimizer, _MAKES),
        )
        for fits, which, part, rule in refusals:
            if not fits:
                raise TypeError(
                    f"`{self.call}`: the {which} part is {_what(part)}; it must be {rule}."
                )
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                f"`{self.call}`: {type(self.model).__name__} has no parameter that requires a "
                "gradient, so there is nothing to train and nothing to lose. Unfreeze it, or pass "
                "the model that holds the parameters."
            )


_A_MODEL = "the model, a `torch.nn.Module`"
_BATCHES = "an iterable of batches, such as a DataLoader or a list. A single batch goes into a list"
_A_LOSS = "the loss, a function of the model and a batch"
_MAKES = (
    "a function of the parameters that returns an optimizer, such as "
    "`lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)`"
)


def _is_model(value: object) -> bool:
    return isinstance(value, nn.Module)


def _iterable(value: object) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | Mapping | Tensor)


def _what(value: object) -> str:
    if isinstance(value, tuple | list):
        count = len(cast("tuple[object, ...]", value))
        return f"a {type(value).__name__} of {count}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__} alone"
    return f"{type(value).__name__} {value!r}"[:80] if value is not None else "None"
