"""Which optimizer step a backward pass belongs to, told without asking the training loop.

A step is all passes up to an optimizer's step. A pass begins a new one if since the pass before

    an optimizer that owns a parameter of the model has stepped, or
    the gradients have been cleared or otherwise changed: a step was skipped.

So the micro-batches of one step belong together, whoever skips the optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from gradscale.layerwise.calendar import Calendar


class Steps:
    """Counts the steps of one model's training, and says which ones measure.

    Args:
        model: whose training.
        calendar: which steps measure.
        stepped: called after an optimizer of the model has stepped.
        summing: whether the scaler holds sums of micro-batches, which `accumulate_` takes out of
            the gradients: that they are gone then ends no step.
    """

    def __init__(
        self,
        model: nn.Module,
        calendar: Calendar,
        stepped: Callable[[], None],
        summing: Callable[[], bool],
    ) -> None:
        self._model = model
        self._calendar = calendar
        self._stepped = stepped
        self._summing = summing
        self.step = -1
        self.measures = False
        self.again = False
        self._over = True
        self._mark: _Mark | None = None
        self._parameters: Sequence[Tensor] = ()
        self._ids: frozenset[int] = frozenset()
        self._handle: RemovableHandle | None = None

    def start(self) -> None:
        """Begins to look at optimizers."""
        parameters = list(self._model.parameters())
        self._ids = frozenset(id(parameter) for parameter in parameters)
        self._parameters = [p for p in parameters if p.requires_grad]
        # For all optimizers, because the loop may make its own only later, or several.
        self._handle = register_optimizer_step_post_hook(self._after)

    def stop(self) -> None:
        """Ends that."""
        if self._handle is not None:
            self._handle.remove()
        self._parameters = ()
        self._mark = None
        self._over = True

    @property
    def over(self) -> bool:
        """Whether a backward pass that begins now begins a new step."""
        if self._over or self._mark is None:
            return self._over
        return self._mark.changed() and not self._summing()

    @property
    def will_measure(self) -> bool:
        """Whether a backward pass that begins now is to be measured."""
        if not self.over:
            return self.measures
        return self.again or self._calendar.due(self.step + 1)

    def begin_pass(self) -> None:
        """A backward pass begins."""
        if self.over:
            self.measures = self.will_measure
            self.step += 1
            self.again = self._over = False

    def end_pass(self) -> None:
        """It has ended: from here on the gradients are compared."""
        # One gradient stands for all: to compare each is a call for every parameter in every pass.
        self._mark = _Mark.of(self._parameters)

    def end(self) -> None:
        """The step under way is over."""
        self._over = True

    def _after(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        del args, kwargs
        # An optimizer of another model steps as well, as of a discriminator.
        groups = optimizer.param_groups
        if any(id(parameter) in self._ids for group in groups for parameter in group["params"]):
            self._over = True
            self._stepped()


class _Mark:
    """The first gradient there was, and how often it had been written to."""

    def __init__(self, parameter: Tensor, gradient: Tensor) -> None:
        # Weakly, so that neither lives longer for being compared.
        self._parameter = weakref.ref(parameter)
        self._gradient = weakref.ref(gradient)
        self._version = gradient._version

    @staticmethod
    def of(parameters: Sequence[Tensor]) -> _Mark | None:
        for parameter in parameters:
            if parameter.grad is not None:
                return _Mark(parameter, parameter.grad)
        return None

    def changed(self) -> bool:
        parameter, gradient = self._parameter(), self._gradient()
        if parameter is None or gradient is None or parameter.grad is not gradient:
            return True
        # Clearing to None replaces the gradient, which is told above; zeroing writes to it.
        return gradient._version != self._version
