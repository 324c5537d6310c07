"""The models on which layer-wise scaling is timed, by device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from real.gpt import GPT, text_loss
from real.resnet import image_loss, resnet


@dataclass(frozen=True)
class Workload:
    """A model with one fixed batch."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    dtype: torch.dtype = torch.float16


def text(n: int, time: int, symbols: int) -> tuple[Tensor, ...]:
    return (torch.randint(symbols, (n, time + 1)),)


def images(n: int, side: int, classes: int) -> tuple[Tensor, ...]:
    return torch.randn(n, 3, side, side), torch.randint(classes, (n,))


class Recurrence(nn.Module):
    """A float16 recurrence over two elements: all that it costs is calls."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.full((2,), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The last state."""
        factor = self.weight.half()
        for _ in range(self.times):
            x = x * factor
        return x


def recurrence(times: int) -> Workload:
    """One of about as many nodes."""
    return Workload(
        lambda: Recurrence(times),
        lambda: (torch.full((2,), 1.0, dtype=torch.float16),),
        lambda model, batch: model(batch[0]).float().sum(),
        torch.float16,
    )


MODELS: dict[str, dict[str, Workload]] = {
    "cpu": {
        "GPT 6 x 320": Workload(
            lambda: GPT(320, 6, 5, 512, 128),
            lambda: text(4, 128, 512),
            text_loss,
            torch.bfloat16,
        ),
        "ResNet-50 shape, width 16": Workload(
            lambda: resnet(16, (3, 4, 6, 3), 10),
            lambda: images(16, 96, 10),
            image_loss,
            torch.bfloat16,
        ),
        "recurrence of 400": recurrence(400),
        "recurrence of 1,200": recurrence(1_200),
        "recurrence of 10,000": recurrence(10_000),
    },
    "cuda": {
        "GPT-2-124M": Workload(
            lambda: GPT(768, 12, 12, 50257, 1024), lambda: text(8, 1024, 50257), text_loss
        ),
        "ResNet-50": Workload(
            lambda: resnet(64, (3, 4, 6, 3), 1000), lambda: images(128, 224, 1000), image_loss
        ),
    },
}
