"""A vision transformer (Dosovitskiy et al. 2020): digits in patches of 2x2 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import classify
from task import Task, Training

PATCH, WIDTH, HEADS, DEPTH = 2, 32, 4, 3


class Block(nn.Module):
    """Attention of all patches to all, and a perceptron, each normalized first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, patches, WIDTH)` to the same."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, HEADS, WIDTH // HEADS))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Three blocks over 16 patches, then a linear head on their mean; `(n, 1, 8, 8)` to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ten classes."""
        state = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(state)).mean(1))


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    model = VisionTransformer()
    # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-8 * 2.0**-octaves)
    return classify.training(model, optimizer, 64, seed, octaves=octaves)


TASK = Task(
    name="vit",
    about="vision transformer of three blocks on digits, Adam",
    knob="octaves by which the loss is divided",
    values=(0, 12, 24, 32),
    fast=(0, 32),
    steps=200,
    score="accuracy",
    chance=0.1,
    begin=begin,
)
