"""A U-Net that names every pixel (Ronneberger et al. 2015, arXiv 1505.04597)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 4


class UNet(nn.Module):
    """Four levels down and up: `(n, 3, h, w)` to logits `(n, classes, h, w)`.

    The published network with what is usual since: convolutions keep the size, each is followed by
    batch normalization, and images are in colour. Sides must be multiples of 16. At the published
    width, ``UNet(64, 21)``, it has 31,038,933 parameters.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS + 1)]
        self.enter = _stage(3, width)
        self.down, self.up, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.down.append(_stage(fine, coarse))
            self.up.append(nn.ConvTranspose2d(coarse, fine, 2, 2))
            self.join.append(_stage(2 * fine, fine))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel."""
        kept = [self.enter(x)]
        for down in self.down:
            kept.append(down(F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            x = join(torch.cat([kept.pop(), up(x)], dim=1))
        return self.head(x)


def _stage(inner: int, outer: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels in (inner, outer):
        convolution = nn.Conv2d(channels, outer, 3, padding=1, bias=False)
        parts += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*parts)


def pixel_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy, the mean over all pixels; the batch is images and labels `(n, h, w)`."""
    return F.cross_entropy(model(batch[0]).float(), batch[1])
