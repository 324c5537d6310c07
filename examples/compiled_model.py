"""A compiled model whose layers get a loss scale each where one scale cannot serve them all.

python examples/compiled_model.py --steps 20 --backend inductor
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscale


class Deep(nn.Module):
    """Without normalisation, gradients shrink by an octave or two in every layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile")
    given = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Deep(20).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    # The scaler first, then the first step: torch compiles when the model is first called.
    scaler = gradscale.GradScaler(device, layerwise=True)
    scaler.name_parameters(model)
    compiled = torch.compile(model, backend=given.backend)

    for _ in range(given.steps):
        x, y = torch.randn(32, 64, device=device), torch.randint(10, (32,), device=device)
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = F.cross_entropy(compiled(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    print(f"loss {loss.item():.3f}")
    print(scaler.layerwise.report())


if __name__ == "__main__":
    main()
