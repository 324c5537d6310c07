"""Handwritten digits with a residual network: the default, installed with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gradscale.recipes.batches import generator
from gradscale.recipes.classification import Classification
from gradscale.recipes.needs import SCIKIT_LEARN
from gradscale.recipes.networks import residual_classifier
from gradscale.recipes.recipe import Data, Defaults

TEST_IMAGES = 397


def scanned_digits(recipe: str) -> tuple[Tensor, Tensor]:
    """Ink per pixel, 0 to 16, shape `(1797, 1, 8, 8)`, and labels `(1797,)`.

    Raises:
        FileNotFoundError: if scikit-learn is missing; it quotes `recipe`.
    """
    SCIKIT_LEARN.require(recipe)
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8), torch.from_numpy(target).long()


def standardized(images: Tensor) -> Tensor:
    """The same with mean 0 and standard deviation 1 over all pixels."""
    return (images - images.mean()) / images.std()


def split(*parts: Tensor) -> Data:
    """The last 1,400 of a fixed random order to train on, the first 397 to test."""
    # Shuffled once, for neighbours may be by one hand.
    order = torch.randperm(len(parts[0]), generator=generator(0, 0))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return Data(tuple(part[train] for part in parts), tuple(part[test] for part in parts))


class Digits(Classification):
    """1,797 grey images of 8x8 pixels, ten classes; 1,400 to train on, 397 to test."""

    name = "digits"
    data = "handwritten digits, 1,797 images 8x8 (scikit-learn)"
    network = "residual network, 3 blocks"
    needs = (SCIKIT_LEARN,)
    defaults = Defaults(
        steps=120, batch_size=64, lr=5e-3, compare_divisors=(1.0, 16384.0), threads=1
    )

    def load(self, folder: Path | None = None) -> Data:
        """The images with mean 0 and standard deviation 1, in a fixed random order."""
        scanned, labels = scanned_digits(self.name)
        return split(standardized(scanned), labels)

    def model(self) -> nn.Module:
        """A stem and three residual blocks, 8x8 to 2x2."""
        return residual_classifier(1, (16, 32, 32), 10)
