"""Ways to train: a precision, and who chooses the loss scale."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """One line of a figure.

    Attributes:
        precision: a name of `gradscale.training.PRECISIONS`, or ``half``: weights and gradients
            stored in float16, masters in float32.
        scaling: a name of `gradscale.training.SCALINGS`; one of `RULES`; ``current`` or
            ``delayed``, by which every operand has a scale of its own; or one of `OWN`.
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


TRUTH = Strategy("fp32", "none")
RULES = {"adaptive": "product", "adaptive-gradient": "gradient", "adaptive-output": "output"}
"""The published adaptive rules (arXiv 1910.12385, and as its authors changed it) as labels."""
OWN = ("unit", "per-step")
"""No scaler: the network itself is written so that its gradients are of a good size.

Unit scaling (Blake et al. 2023, arXiv 2303.11257); a scale for each step of a solver (Celledoni et
al. 2025, arXiv 2510.23498).
"""
DRAWN = (  # as lines of the figures
    TRUTH,
    Strategy("bf16", "none"),
    *(
        Strategy(precision, scaling)
        for precision in ("fp16", "e5m2", "e4m3")
        for scaling in ("torch", "guarded", "layerwise")
    ),
)
LINES = (
    *DRAWN,
    *(
        Strategy("fp16", scaling)
        for scaling in (
            *("none", "deepspeed", "megatron", "openseq2seq-backoff", "openseq2seq-logmax"),
            *("two-sided", *RULES, *OWN),
        )
    ),
    *(
        Strategy(precision, scaling)
        for precision in ("e5m2", "e4m3")
        for scaling in ("current", "delayed")
    ),
    Strategy("half", "dynamic"),
    Strategy("half", "layerwise"),
)
FAST = (TRUTH, Strategy("fp16", "torch"), Strategy("fp16", "layerwise"))
CONSTANTS = tuple(Strategy("fp16", "static", k) for k in range(-8, 49, 4))
