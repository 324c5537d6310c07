"""Fashion-MNIST with a small residual network, from the Debian package."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscale.recipes.classification import Classification
from gradscale.recipes.needs import Need
from gradscale.recipes.networks import residual_classifier
from gradscale.recipes.recipe import Data, Defaults

MEAN, STD = 0.2860, 0.3530  # of the training images


def _need(file: str) -> Need:
    return Need(
        "sudo apt-get install dataset-fashion-mnist    # Debian and Ubuntu, 31 MB",
        file=f"{file}-ubyte.gz",
        places=("/usr/share/datasets/fashion-mnist",),
    )


TRAIN = _need("train-images-idx3"), _need("train-labels-idx1")
TEST = _need("t10k-images-idx3"), _need("t10k-labels-idx1")


class FashionMnist(Classification):
    """60,000 grey images 28x28 to train on, 10,000 to test; ten classes (Xiao et al. 2017)."""

    name = "fashion-mnist"
    data = "Fashion-MNIST, 70,000 images 28x28 (Debian package)"
    network = "residual network, 3 blocks (ResNet-8)"
    needs = (*TRAIN, *TEST)
    defaults = Defaults(steps=250, batch_size=128, lr=5e-3)

    def load(self, folder: Path | None = None) -> Data:
        """Normalized images."""
        train, test = (
            (_images(images.require(self.name, folder)), _labels(labels.require(self.name, folder)))
            for images, labels in (TRAIN, TEST)
        )
        return Data(train, test)

    def model(self) -> nn.Module:
        """ResNet-8 (He et al. 2016, section 4.2, n = 1)."""
        return residual_classifier(1, (16, 32, 64), 10)


def _bytes(path: Path, header: int) -> Tensor:
    with gzip.open(path) as file:
        return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)


def _images(path: Path) -> Tensor:
    # IDX: a magic number, then a size for each axis, four bytes each.
    return ((_bytes(path, 16).view(-1, 1, 28, 28).float() / 255) - MEAN) / STD


def _labels(path: Path) -> Tensor:
    return _bytes(path, 8).long()
