"""A strategy at work in one training: what its steps compute in, and what they cost."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

import gradscale
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.plans import Adaptive, Windows
from gradscale.plans.decision import Decision
from gradscale.plans.situation import Situation
from gradscale.policies import Dynamic
from gradscale.training.precision import computing_in
from gradscale.training.scaling import make_scaler
from lost import LostShares, gradients, lost_shares
from per_tensor import CurrentScaling, scaled_format
from strategy import OWN, RULES, Strategy
from task import Training


@dataclass(frozen=True)
class CountingWindows(Windows):
    """`Windows`, which notes how many tensors were looked at for it."""

    looked_at: list[int] = field(default_factory=lambda: [0], compare=False)

    def decide(self, situation: Situation) -> Decision:
        """As ever."""
        self.looked_at[0] += len(situation.measurements.records)
        return Windows.decide(self, situation)


class Way:
    """One of them; it turns `training` into half precision if that is what it is about.

    Attributes:
        scaler: the loss scaler, None if nothing scales.
    """

    def __init__(self, strategy: Strategy, training: Training) -> None:
        self._strategy, self._training = strategy, training
        self._format: CurrentScaling | None = None
        self._planner = CountingWindows()
        self.scaler: torch.amp.GradScaler | None = None
        if strategy.precision == "half":
            gradscale.half_precision(training.model, training.optimizer)
        if strategy.scaling in ("current", "delayed"):
            self._format = scaled_format(strategy.scaling, strategy.precision)
        elif strategy.scaling == "layerwise":
            self.scaler = gradscale.GradScaler("cpu", policy=Dynamic(), layerwise=self._planner)
        elif strategy.scaling in RULES:
            planner = Adaptive(rule=RULES[strategy.scaling])
            self.scaler = gradscale.GradScaler("cpu", policy=Dynamic(), layerwise=planner)
        elif strategy.scaling not in OWN:
            scale = None if strategy.log2_scale is None else 2.0**strategy.log2_scale
            format = "fp16" if strategy.precision == "half" else strategy.precision
            self.scaler = make_scaler(strategy.scaling, "cpu", scale, format)

    @property
    def reductions(self) -> int:
        """How many tensors were read for their maximum so far, to choose a scale each."""
        return self._planner.looked_at[0] if self._format is None else self._format.reductions[0]

    def computing(self) -> AbstractContextManager[object]:
        """Both passes of a step."""
        if self._format is not None:
            return self._per_tensor(self._format)
        if self._strategy.precision == "half":
            return emulate()
        return computing_in(self._strategy.precision, "cpu", "auto")

    @contextmanager
    def _per_tensor(self, format: CurrentScaling) -> Generator[None]:
        format.begin_step()
        with (
            torch.autocast("cpu", torch.bfloat16),
            emulate(forward="bf16", backward=format, between="bf16"),
        ):
            yield

    def backward(self, loss: Tensor) -> None:
        """Of the loss as it is scaled."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def lost(self, step: int) -> LostShares:
        """What this way loses of the gradients of one more step, against float32 at its weights.

        Unknown where the weights are stored in half precision or not finite, and where operands
        are scaled by what earlier steps left.
        """
        strategy, training = self._strategy, self._training
        model = training.model
        finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
        if strategy.precision in ("fp32", "half") or strategy.scaling == "delayed" or not finite:
            return LostShares()
        true = gradients(model, lambda: training.loss(step), torch.Tensor.backward)
        with self.computing():
            held = gradients(model, lambda: training.loss(step), self.backward)
        return lost_shares(true, held, self._format or FloatFormat.of(strategy.precision))

    def scoring(self) -> AbstractContextManager[object]:
        """What the trained network is judged in: its own precision if it has one, else float32."""
        half = self._strategy.precision == "half"
        return emulate() if half else computing_in("fp32", "cpu", "auto")
