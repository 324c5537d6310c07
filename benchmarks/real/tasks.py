"""What is trained: three networks as published, and toys of the same code for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from real.gpt import GPT, text_loss
from real.resnet import image_loss, resnet
from real.streams import images, scenes, text
from real.unet import UNet, pixel_loss

Batch = tuple[Tensor, ...]
Build = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """A network, batches for it, and an optimizer.

    Attributes:
        name: as tables show it.
        about: shapes and optimizer in a line.
        model: made on torch's default device, initialized from its global generator.
        batch: drawn from a generator, on its device.
        loss: of the model on a batch, a float32 scalar.
        optimizer: its class with its settings; `foreach` and `fused` are added.
        unit: of what throughput counts.
        units: how many of these a batch has.
        channels_last: whether images and weights lie so, as convolutions are fastest on a GPU.
    """

    name: str
    about: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    unit: str
    units: int
    channels_last: bool = False


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)
ADAMW = partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

RESNET = Task(
    name="ResNet-50",
    about="25.6 M parameters, 128 images of 224 x 224, SGD with momentum",
    model=lambda: resnet(64, (3, 4, 6, 3), 1000),
    batch=lambda generator: images(generator, 128, 224),
    loss=image_loss,
    optimizer=SGD,
    unit="images",
    units=128,
    channels_last=True,
)
GPT2 = Task(
    name="GPT-2-124M",
    about="124.4 M parameters, 8 texts of 1,024 symbols, AdamW",
    model=lambda: GPT(768, 12, 12, 50257, 1024),
    batch=lambda generator: text(generator, 8, 1024, used=64),
    loss=text_loss,
    optimizer=ADAMW,
    unit="tokens",
    units=8 * 1024,
)
UNET = Task(
    name="U-Net 512 x 512",
    about="31.0 M parameters, 21 classes, 8 images of 512 x 512, AdamW",
    model=lambda: UNet(64, 21),
    batch=lambda generator: scenes(generator, 8, 512),
    loss=pixel_loss,
    optimizer=ADAMW,
    unit="images",
    units=8,
    channels_last=True,
)
FULL = (RESNET, GPT2, UNET)
TINY = (
    replace(
        RESNET,
        model=lambda: resnet(8, (1, 1, 1, 1), 10),
        batch=lambda generator: images(generator, 2, 64),
        units=2,
    ),
    replace(
        GPT2,
        model=lambda: GPT(32, 2, 2, 128, 16),
        batch=lambda generator: text(generator, 2, 16, used=64),
        units=2 * 16,
    ),
    replace(
        UNET,
        model=lambda: UNet(4, 21),
        batch=lambda generator: scenes(generator, 2, 32),
        units=2,
    ),
)
"""The same code in seconds on a CPU; what they measure means nothing."""
