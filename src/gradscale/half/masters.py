"""The masters of one optimizer: gradients moved to them before a step, weights back after it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import cast
from weakref import ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.gradients.master_weights import register_masters
from gradscale.gradients.unscale import Flags, tensor_values
from gradscale.half.around_optimizer import (
    Args,
    Kwargs,
    Pairs,
    closure_of,
    copied_as_pair,
    patch,
    with_closure,
)
from gradscale.half.clipped_early import ClippedEarly
from gradscale.half.drift import Drift
from gradscale.half.link import MASTER, Link, copy_back, link_of, settle_ahead, written_of
from gradscale.half.repoint import move_state
from gradscale.half.rounding import HALVES
from gradscale.half.saving import hook_states
from gradscale.half.step_refusals import refuse_orphans, refuse_scaled, refuse_writes
from gradscale.half.widen import widen
from gradscale.half.widening import in_layout_of
from gradscale.ranks import distributed


class Masters:
    """The parameters in half precision that an optimizer updates through float32 masters.

        before a step   gradient of the master = float32(gradient of the parameter) / S
        after it        parameter = round(master)

    Our scaler does the first in the pass in which it divides; without a scaler a hook on the
    optimizer's `step` does it. The second is always a hook.

    Args:
        optimizer: owns the masters.
        model: what holds the parameters; None of a copy, until it runs.
        gradients: the dtype in which backward passes accumulate.
        saturate: whether masters beyond the half-precision range are clamped to it, not infinite.
        adopt: called when the optimizer was given more parameters; None if nobody can.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: torch.nn.Module | None,
        gradients: torch.dtype,
        saturate: bool,
        adopt: Callable[[], None] | None,
    ) -> None:
        self.links: list[Link] = []
        self._gradients = gradients
        self._saturate = saturate
        self._stepped = False
        self._clipped_early = ClippedEarly()
        self._drift = Drift()
        self._optimizer = ref(optimizer)
        self._model = None if model is None else ref(model)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            # Behind the hooks that are there already, which may read what masters have.
            optimizer.register_step_post_hook(self._let_go),
        ]
        # Ahead of the user's own: they find the weights of this step, and may write them.
        post = cast("OrderedDict[int, object]", optimizer._optimizer_step_post_hooks)
        post.move_to_end(self._handles[1].id, last=False)
        self._handles += hook_states(optimizer, self.links)
        self.adopt = adopt
        self._unpatch = [
            patch(optimizer, "zero_grad", self._zero_grad),
            patch(optimizer, "add_param_group", self._add_param_group),
            copied_as_pair(optimizer, self._pairs, _rebuild),
        ]
        register_masters(optimizer, self)

    @property
    def model(self) -> torch.nn.Module | None:
        """The model, as long as somebody holds it."""
        return None if self._model is None else self._model()

    def link(self, parameter: Tensor, master: Tensor) -> None:
        """Takes in a parameter and its master, which another optimizer may have as well."""
        known = link_of(parameter)
        if known is None or known.master is not master:
            known = Link(parameter, master, self._gradients, self._saturate, self)
        self.links.append(known)

    def _pairs(self) -> Pairs:
        if not self.may_be_of_another_rank:
            self.take_changes()
        settle_ahead(self.links)
        return Pairs(
            [link.parameter for link in self.links],
            [link.master for link in self.links],
            self._gradients,
            self._saturate,
        )

    def attach(self, model: torch.nn.Module) -> None:
        """Names the model of these parameters, where it was not known."""
        self._model = ref(model)

    def agree(self) -> None:
        """Gives each master the gradient of its parameter; see `SharedGradient.gradient`."""
        for link in self.links:
            link.gradient()

    def widen_(
        self,
        inv_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        divided_later: Tensor | None = None,
    ) -> tuple[Flags, set[int]]:
        """Turns half-precision gradients into float32 ones; see `MasterWeights.widen_`."""
        pending: list[Link] = []
        for link in self.links:
            grad = link.gradient()
            if grad is not None and grad.dtype in HALVES:
                pending.append(link)
        if not pending:
            return {}, set()
        if inv_scale is not None:
            self._clipped_early.look(pending)
        done = {id(link.master) for link in pending}
        sources = [
            (tensor_values(cast(Tensor, link.gradient())), link.exponent) for link in pending
        ]

        def take(place: int, wide: Tensor) -> None:
            link = pending[place]
            link.replace(in_layout_of(cast(Tensor, link.parameter.grad), wide))
            link.exponent = 0

        return widen(sources, inv_scale, found_inf, take, divided_later), done

    def take_changes(self) -> None:
        """Brings the masters in line with parameters that somebody wrote; see `Link`.

        Raises:
            RuntimeError: before the first step, if it was another rank.
        """
        if self.of_another_rank:
            raise other_weights()
        for link in written_of(self.links):
            link.take_changes()

    def copy_back(self) -> None:
        """Rounds the masters into the parameters."""
        copy_back(self.links)

    def sync(self) -> None:
        """Brings both together, whatever torch has seen; the masters hold where both were written.

        Raises:
            RuntimeError: before the first step, if it was another rank.
        """
        if self.of_another_rank:
            raise other_weights()
        for link in self.links:
            if link.written not in MASTER:
                link.take_changes()
        self.copy_back()

    def remove(self) -> None:
        """Takes the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None:
            register_masters(optimizer, None)
            for unpatch in self._unpatch:
                unpatch()

    def _before_step(
        self, optimizer: Optimizer, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs] | None:
        self.take_changes()
        whole = [link for link in self.links if not _sharded(link.master)]
        self._drift.look(whole, type(optimizer).__name__)
        # Before gradients are widened: afterwards nothing says at which exponent they came.
        refuse_scaled(optimizer, self.links)
        self.widen_()
        for link in self.links:
            # `model.to(device)` moves the master along, and nobody the state that belongs to it.
            if link.moved:
                move_state(optimizer, link.master)
                link.moved = False
        # By now every gradient that there is has come to its master.
        refuse_orphans(optimizer, self.model, self.links)
        closure = closure_of(args, kwargs)
        if closure is None:
            return None
        return with_closure(args, kwargs, self._between(optimizer, closure))

    def _between(self, optimizer: Optimizer, closure: Callable[[], object]) -> Callable[[], object]:
        """A closure around which weights go to the model, and gradients come to the masters."""

        def evaluate() -> object:
            refuse_writes(optimizer, self.links)
            self.copy_back()
            loss = closure()
            self.take_changes()
            self.widen_()
            return loss

        return evaluate

    def _after_step(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> None:
        refuse_writes(optimizer, self.links)
        self.copy_back()
        self._stepped = True

    def _let_go(self, optimizer: Optimizer, args: Args, kwargs: Kwargs) -> None:
        for link in self.links:
            link.let_go()

    def _zero_grad(self, original: Callable[..., None], set_to_none: bool = True) -> None:
        self.agree()
        original(set_to_none)
        for link in self.links:
            link.clear(set_to_none=set_to_none)

    def _add_param_group(
        self, original: Callable[..., None], *args: object, **kwargs: object
    ) -> None:
        if self.adopt is None:
            raise RuntimeError(
                "`optimizer.add_param_group(…)`: this optimizer is a copy, made without the "
                "`HalfPrecision` that knows what of the model stays in float32. Copy the three "
                "together: `copy.deepcopy((model, optimizer, half))`."
            )
        original(*args, **kwargs)
        self.adopt()

    @property
    def may_be_of_another_rank(self) -> bool:
        """Whether DDP may have sent what the parameters hold."""
        return not self._stepped and distributed()

    @property
    def of_another_rank(self) -> bool:
        """Before the first step: whether DDP, which knows no masters, sent other parameters."""
        return self.may_be_of_another_rank and any(
            link.apart for link in written_of(self.links) if not _sharded(link.master)
        )


def _rebuild(optimizer: Optimizer, pairs: Pairs) -> None:
    """Links a copied optimizer to the copied parameters."""
    masters = Masters(optimizer, None, pairs.gradients, pairs.saturate, None)
    for parameter, master in zip(pairs.parameters, pairs.masters, strict=True):
        masters.link(parameter, master)
    masters.copy_back()  # a model that was copied before its optimizer settled


def other_weights() -> RuntimeError:
    """The error of ranks that would go on with different masters."""
    return RuntimeError(
        "the parameters were written after `half_precision(model, optimizer)`, by DDP if "
        "the ranks began with different weights, and their float32 masters would differ. "
        "Seed all ranks alike, or call `half.broadcast()` after wrapping the model."
    )


def _sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "_local_tensor")
