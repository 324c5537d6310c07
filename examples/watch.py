"""What float16 loses of a transformer's gradients, seen while it trains.

The loop is the usual one; the only new lines are those with `watch`. The loss is divided by 4096,
as a small loss weight or a long accumulation do, and the scale starts at 1: far too low.

python examples/watch.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gradscale


class Block(nn.Module):
    """Attention and two layers with a ReLU between, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, time, width)` to the same."""
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(self.norm(x))))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), Block(32), Block(32), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)

    with gradscale.watch(model, scaler, every=10) as watch:
        for _ in range(25):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                out = model(torch.randn(8, 12, 16))
            scaler.scale(out.float().square().mean() / 4096).backward()
            scaler.step(optimizer)
            scaler.update()

    print(watch.report().table(rows=12))
    for at in (0, 8, 16):
        print(f"At a scale of 2^{at} float16 would lose {watch.report('fp16', at).lost_share:.2%}.")


if __name__ == "__main__":
    main()
