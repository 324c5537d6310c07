"""Ways to train: a precision, and who scales the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import gradscale


@dataclass(frozen=True)
class Way:
    """One row of a table.

    Attributes:
        name: unique, as tables show it.
        autocast: its dtype, or None.
        tf32: whether float32 products may round their operands to 10 bits.
        half: whether weights and gradients are stored in float16.
        scaler: ``"torch"``, ``"gradscale"``, ``"layerwise"``, or None.
    """

    name: str
    autocast: torch.dtype | None = None
    tf32: bool = False
    half: bool = False
    scaler: str | None = None

    @property
    def ours(self) -> bool:
        """Whether it is our scaler that must not wait for the device."""
        return self.scaler in ("gradscale", "layerwise")

    def make_scaler(self, device: str, init_scale: float) -> torch.amp.GradScaler:
        """The scaler; one that passes everything through if nothing scales."""
        if self.ours:
            return gradscale.GradScaler(device, init_scale, layerwise=self.scaler == "layerwise")
        return torch.amp.GradScaler(device, init_scale, enabled=self.scaler is not None)


BASE = Way("fp16, torch's scaler", torch.float16, scaler="torch")
"""What every other way is timed against."""
FLOAT32 = Way("float32")
WAYS = (
    BASE,
    Way("fp16, gradscale", torch.float16, scaler="gradscale"),
    Way("fp16, layerwise", torch.float16, scaler="layerwise"),
    FLOAT32,
    Way("TF32", tf32=True),
    Way("bf16", torch.bfloat16),
    Way("half model, gradscale", half=True, scaler="gradscale"),
    Way("half model, layerwise", half=True, scaler="layerwise"),
)
