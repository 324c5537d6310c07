"""The models on which layer-wise scaling is timed, by device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Workload:
    """A model with one fixed batch."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    dtype: torch.dtype = torch.float16


class Block(nn.Module):
    """A pre-norm transformer block as in GPT-2."""

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
    """GPT-2 with tied embeddings."""

    def __init__(self, width: int, depth: int, heads: int, symbols: int, time: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        nn.init.normal_(self.symbols.weight, std=0.02)
        self.head.weight = self.symbols.weight

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next symbol."""
        x = self.symbols(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(x)))


class Bottleneck(nn.Module):
    """The residual block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.beside: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            convolution = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.beside = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w)` to `(n, 4 * width, h / stride, w / stride)`."""
        return F.relu(self.inside(x) + self.beside(x))


def resnet(width: int, blocks: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-50 at width 64 with blocks 3, 4, 6, 3."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = width
    for stage, count in enumerate(blocks):
        inner = width << stage
        for block in range(count):
            layers.append(Bottleneck(inputs, inner, 2 if stage and not block else 1))
            inputs = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def text(n: int, time: int, symbols: int) -> tuple[Tensor, ...]:
    return (torch.randint(symbols, (n, time + 1)),)


def images(n: int, side: int, classes: int) -> tuple[Tensor, ...]:
    return torch.randn(n, 3, side, side), torch.randint(classes, (n,))


def text_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    (symbols,) = batch
    logits = model(symbols[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), symbols[:, 1:].flatten())


def image_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


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
