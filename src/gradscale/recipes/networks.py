"""The network parts that several recipes build on: residual blocks and causal attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (He et al. 2016, figure 2).

    Maps `(n, inner, h, w)` to `(n, outer, h / stride, w / stride)`.
    """

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        inside = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(inside)))


def residual_classifier(channels: int, widths: tuple[int, ...], classes: int) -> nn.Sequential:
    """A residual network: a stem, one block a width (the first at full resolution), a linear head.

    Maps `(n, channels, h, w)` to logits `(n, classes)`.

    Example:
        >>> residual_classifier(1, (8, 16), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    stem = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])]
    inner = (widths[0], *widths[:-1])
    # At half the resolution and more channels each: the cost of a block stays about the same.
    blocks = [
        ResidualBlock(before, width, stride=1 if index == 0 else 2)
        for index, (before, width) in enumerate(zip(inner, widths, strict=True))
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*stem, nn.ReLU(), *blocks, *head)


class CausalAttention(nn.Module):
    """Multi-head self-attention that sees only what came before; `(n, time, width)` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        count, time, width = x.shape
        qkv = self.qkv(x).view(count, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(seen.transpose(1, 2).reshape(count, time, width))


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each normalized first; `(n, time, width)` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
