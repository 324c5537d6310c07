"""What networks that name digits have in common: batches, cross-entropy, accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.digits import Digits
from task import Training


def training(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, seed: int) -> Training:
    """Of a network from `(n, 1, 8, 8)` to logits `(n, 10)`; `batch` images a step."""
    (images, labels), (test, truth) = Digits().load()

    def loss(step: int) -> Tensor:
        index = torch.randint(len(images), (batch,), generator=generator(seed, step))
        return F.cross_entropy(model(images[index]).float(), labels[index])

    def score() -> Tensor:
        return (model(test).argmax(1) == truth).float().mean()

    return Training(model, optimizer, loss, score)
