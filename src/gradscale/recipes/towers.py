"""Two networks and two losses in different units: where one loss scale does not do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.digits import scanned_digits, split, standardized
from gradscale.recipes.needs import SCIKIT_LEARN
from gradscale.recipes.recipe import Batch, Data, Defaults, Recipe

PIXEL = 2.0**-18
"""Metres a pixel: 3.8 micrometres, the pitch of a camera's pixels."""
WIDTH = 48


def ink_centre(images: Tensor) -> Tensor:
    """Where the ink of each image has its centre, from the middle of the image, in metres.

    Args:
        images: ink per pixel, 0 or more, shape `(n, 1, 8, 8)`.

    Returns:
        Row and column, shape `(n, 2)`.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[0, 0, 4, 6] = 1.0
        >>> (ink_centre(image) / PIXEL).tolist()
        [[0.5, 2.5]]
    """
    ink = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    at = torch.arange(8.0) - 3.5
    return PIXEL * torch.stack([ink.sum(2) @ at, ink.sum(1) @ at], dim=1)


def perceptron(outputs: int) -> nn.Sequential:
    """Four layers with GELU, from 8x8 pixels to `outputs` numbers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (64, WIDTH, WIDTH):
        layers += [nn.Linear(inputs, WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


class TwoTowers(nn.Module):
    """One network names the digit, the other finds its centre, in metres; they share nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.centre = perceptron(10), perceptron(2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `(n, 1, 8, 8)` to logits `(n, 10)` and a place `(n, 2)`, both float32."""
        return self.name(images).float(), PIXEL * self.centre(images).float()


class Towers(Recipe):
    """Digits, named and located. A batch is `(images (n, 1, 8, 8), labels (n,), centres (n, 2))`.

    One loss is in nats, the other in metres², as energies stand beside strains. The gradients of
    the two networks lie 36 octaves apart: float16 has no room for both, and Adam makes steps of the
    same size of either.
    """

    name = "towers"
    data = "handwritten digits, 1,797 images 8x8, and their centres in metres (scikit-learn)"
    network = "two perceptrons, a loss in units of its own each"
    metric_name = "R² of centres"
    needs = (SCIKIT_LEARN,)
    defaults = Defaults(
        steps=200,
        batch_size=64,
        lr=2e-3,
        eps=1e-15,  # gradients of the centres are 2^-36 of the others: 1e-8 would hold them still
        compare_divisors=(1.0,),
        threads=1,
    )

    def load(self, folder: Path | None = None) -> Data:
        """The recipe `digits`' split, and where the ink is."""
        scanned, labels = scanned_digits(self.name)
        return split(standardized(scanned), labels, ink_centre(scanned))

    def model(self) -> nn.Module:
        """Two perceptrons of four layers."""
        return TwoTowers()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, plus the mean square error in metres²; means over the batch."""
        images, labels, centres = batch
        logits, places = model(images)
        return F.cross_entropy(logits, labels) + F.mse_loss(places, centres)

    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """The share of the centres' variance that is explained: 1 is perfect, 0 a constant."""
        images, _, centres = batch
        _, places = model(images)
        unexplained = (places - centres).square().sum()
        return 1 - unexplained / (centres - centres.mean(0)).square().sum()
