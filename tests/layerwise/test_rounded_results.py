"""Emulated products round what they make, whatever tensor carries it: that limits a plan, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.emulation import emulate
from gradscale.scaler import GradScaler

SYMBOLS, WIDTH = 32, 32


class Tied(nn.Module):
    """A head that shares its weight with the embedding: large weights, so products grow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.mix = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embed(symbols)
        return self.norm(x + self.mix(x)) @ self.embed.weight.T


def test_float32_tensors_of_emulated_products_do_not_overflow_under_a_plan():
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = GradScaler("cpu", layerwise=True)
    skipped, losses = 0, []
    for _ in range(12):
        text = torch.randint(SYMBOLS, (8, 17))
        optimizer.zero_grad()
        with emulate(forward="fp16", backward="e5m2"):
            logits = model(text[:, :-1]).flatten(0, 1)
            loss = F.cross_entropy(logits, text[:, 1:].flatten())
            scaler.scale(loss / 2**12).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.last_step.skipped
        losses.append(loss.item())
    assert skipped == 0
    assert losses[-1] < losses[0]
    assert scaler.get_scale() > 2.0**16, "the divided loss wants more than the first scale"
