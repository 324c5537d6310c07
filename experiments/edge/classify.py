"""What networks that name digits have in common: batches, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.digits import Digits
from task import Training

ALL = range(10)


def training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: int,
    seed: int,
    *,
    octaves: float = 0.0,
    classes: Sequence[int] = ALL,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Training:
    """Of a network from `(n, 1, 8, 8)` to logits `(n, 10)`; `batch` images of `classes` a step.

    The loss, `criterion` of logits and labels, is divided by 2 to the `octaves`.
    """
    (images, labels), (test, truth) = (_of(part, classes) for part in Digits().load())

    def loss(step: int) -> Tensor:
        index = torch.randint(len(images), (batch,), generator=generator(seed, step))
        return criterion(model(images[index]).float(), labels[index]) * 2.0**-octaves

    def score() -> Tensor:
        return (model(test).argmax(1) == truth).float().mean()

    return Training(model, optimizer, loss, score)


def _of(part: tuple[Tensor, ...], classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    images, labels = part
    chosen = torch.isin(labels, torch.tensor(classes))
    return images[chosen], labels[chosen]
