"""Ways to train: a precision, and who chooses the loss scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradscale.training.scaling import make_scaler


@dataclass(frozen=True)
class Strategy:
    """One line of a figure.

    Attributes:
        precision: a name of `gradscale.training.PRECISIONS`.
        scaling: a name of `gradscale.training.SCALINGS`.
        log2_scale: the constant, for ``static``.
    """

    precision: str
    scaling: str
    log2_scale: int | None = None

    @property
    def label(self) -> str:
        """Unique, and as tables show it."""
        if self.scaling == "none" and self.precision in ("fp32", "bf16"):
            return self.precision
        constant = "" if self.log2_scale is None else f" 2^{self.log2_scale}"
        return f"{self.precision} {self.scaling}{constant}"

    def scaler(self) -> torch.amp.GradScaler | None:
        """A new one; None if nothing scales."""
        scale = None if self.log2_scale is None else 2.0**self.log2_scale
        return make_scaler(self.scaling, "cpu", scale, self.precision)


TRUTH = Strategy("fp32", "none")
LINES = (
    TRUTH,
    Strategy("bf16", "none"),
    *(
        Strategy(precision, scaling)
        for precision in ("fp16", "e5m2", "e4m3")
        for scaling in ("torch", "guarded", "layerwise")
    ),
    *(
        Strategy("fp16", scaling)
        for scaling in ("none", "deepspeed", "megatron", "two-sided", "adaptive")
    ),
)
FAST = (TRUTH, Strategy("fp16", "torch"), Strategy("fp16", "layerwise"))
CONSTANTS = tuple(Strategy("fp16", "static", k) for k in range(-8, 49, 4))
