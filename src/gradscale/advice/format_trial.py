"""One format on trial: the same batches in it under every way of scaling, the simplest first."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, get_args

import torch
from torch import nn

from gradscale.advice.evidence import Collected, Scaling, Truth
from gradscale.advice.module_under_way import modules_under_way
from gradscale.advice.planned_passes import PlannedPasses
from gradscale.emulation.computing import computing_in, is_emulated
from gradscale.exponents import ceil_exponent
from gradscale.formats import FloatFormat
from gradscale.policies import Dynamic, Observation
from gradscale.truth import Gradients, compared
from gradscale.truth.one_pass import Loss, one_pass
from gradscale.watching.rows import Row

DEFAULT = Dynamic()
"""The policy of `GradScaler()`."""

BACKOFFS = 40
"""Passes over one batch in which it may back off: from 2^16 to below 2^-23."""


class Moment(NamedTuple):
    """What one look at a format found at the best single scale.

    Attributes:
        step: of the float32 training.
        loss: its float32 loss.
        rows: modules and parameters, most lost elements first.
        order: the modules' names in the order of the backward pass.
    """

    step: int
    loss: float
    rows: tuple[Row, ...]
    order: tuple[str, ...]


class FormatTrial:
    """Runs one format beside the float32 training that says what is true.

    Args:
        format: ``"fp16"``, ``"bf16"``, ``"e5m2"`` or ``"e4m3"``.
        model: the float32 copy under training; left as it is by every call.
        device: where it is.
        choice: whether to emulate: ``"auto"``, ``"on"`` or ``"off"``.

    Attributes:
        ways: what was collected without scaling, under `GradScaler()` as it comes, at the best
            single scale and at the scales of a plan.
        moments: what each look found at the single scale.
        log2_default: the exponent that the default scaler has come to.
        log2_single: that of the best single scale.
        planned: the plan, and where the forward pass stopped being finite under it.
        error: why the model could not run in this format; empty if it could.
    """

    def __init__(self, format: str, model: nn.Module, device: str, choice: str) -> None:
        self.format, self.device = format, device
        self.choice = "on" if torch.device(device).type == "cpu" and choice == "auto" else choice
        self.emulated = is_emulated(format, device, self.choice)
        self.ways: dict[Scaling, Collected] = {
            way: Collected(skips=way != "none") for way in get_args(Scaling)
        }
        self.moments: list[Moment] = []
        self.log2_default = self.log2_single = 0
        self.error = ""
        self._model = model
        self.planned = PlannedPasses(format, model, device)
        self._default = DEFAULT.init((), torch.device("cpu"))

    @property
    def narrow(self) -> FloatFormat:
        """The format in which products read their gradient."""
        return FloatFormat.of(self.format)

    def _computing(self) -> AbstractContextManager[None]:
        return computing_in(self.format, self.device, self.choice)

    def look(self, step: int, loss: Loss, true: Truth) -> None:
        """One moment of training: every way of scaling against float32."""
        if self.planned.hunt is not None or self.error:
            return
        with modules_under_way(self._model) as entered:
            try:
                self._look(step, loss, true)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                # An operation that does not exist in this format, or refuses mixed dtypes.
                where = f" (in {entered[-1]})" if entered else ""
                self.error = " ".join(str(error).split()[:40]) + where

    def _look(self, step: int, loss: Loss, true: Truth) -> None:
        with self._computing():
            planned = self.planned.settled(loss)
            if planned is None:
                return
            self.log2_single = self.planned.log2_single
            single = self._single_scale_pass(loss)
            default = self._backed_off(loss)
            bare = self._at(loss, 0)
        passes = (bare, default, single, planned)
        for collected, found in zip(self.ways.values(), passes, strict=True):
            collected.add(true, found, self.narrow)
        rows = compared(true.gradients, single, self.narrow).rows
        order = tuple(dict.fromkeys(output.module for output in single.modules))
        self.moments.append(Moment(step, true.gradients.loss, rows, order))

    def _backed_off(self, loss: Loss) -> Gradients:
        """The gradients of the first step that `GradScaler()` does not skip; else the last."""
        found = self._default_pass(loss)
        for _ in range(BACKOFFS):
            if found.finite:
                break
            found = self._default_pass(loss)
        return found

    def _default_pass(self, loss: Loss) -> Gradients:
        self.log2_default = ceil_exponent(float(self._default.scale))
        found = self._at(loss, self.log2_default)
        found_inf = torch.tensor(float(not found.finite))
        self._default = DEFAULT.update(self._default, Observation(found_inf))
        return found

    def _single_scale_pass(self, loss: Loss) -> Gradients:
        """At the highest scale that nothing in the graph forbids; lower where that overflows."""
        found = self._at(loss, self.log2_single)
        # The histograms are of what passes between nodes; what a kernel holds inside may overflow
        # first, as the product inside of an attention. Two octaves at a time, 16 at most.
        for _ in range(8):
            if found.finite:
                break
            self.log2_single -= 2
            found = self._at(loss, self.log2_single)
        return found

    def _at(self, loss: Loss, log2_scale: int) -> Gradients:
        return one_pass(self._model, loss, 2.0**log2_scale, draw_alike=True)
