"""GPT-2 (Radford et al. 2019), attention by torch's fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, time, width)` to the same."""
        n, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """GPT-2 with its head tied to its embedding, initialized as published.

    The small one is ``GPT(768, 12, 12, 50257, 1024)``: 124,439,808 parameters.
    """

    def __init__(self, width: int, depth: int, heads: int, symbols: int, time: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        self.head.weight = self.symbols.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Layers that add to the residual stream: smaller, the more of them there are.
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if adds else 0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next symbol: `(n, time)` to `(n, time, symbols)`."""
        x = self.symbols(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(x)))


def text_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy of each next symbol; the batch is one tensor `(n, time + 1)`."""
    (symbols,) = batch
    logits = model(symbols[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), symbols[:, 1:].flatten())
