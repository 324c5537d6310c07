"""Denoising of photographs with a U-Net: a dense loss, the mean over all pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator, shuffled
from gradscale.recipes.needs import PILLOW, SCIKIT_LEARN
from gradscale.recipes.recipe import Batch, Data, Defaults, Recipe

SIDE = 32
NOISE = 0.25


class UNet(nn.Module):
    """Two levels down and up with skips (Ronneberger et al. 2015); `(n, 3, h, w)` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = _stage(3, width)
        self.down1 = _stage(width, 2 * width)
        self.down2 = _stage(2 * width, 4 * width)
        self.up1 = _stage(6 * width, 2 * width)
        self.up2 = _stage(3 * width, width)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The noise in `x`."""
        fine = self.enter(x)
        middle = self.down1(F.avg_pool2d(fine, 2))
        coarse = self.down2(F.avg_pool2d(middle, 2))
        middle = self.up1(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], dim=1))
        fine = self.up2(torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], dim=1))
        return self.leave(fine)


def _stage(inner: int, outer: int) -> nn.Sequential:
    norm = nn.GroupNorm(4, outer)
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), norm, nn.SiLU())


class Denoise(Recipe):
    """Patches of two photographs that come with scikit-learn, under Gaussian noise."""

    name = "denoise"
    data = "520 patches 32x32 of two photographs (scikit-learn)"
    network = "U-Net, 3 levels, width 16"
    metric_name = "PSNR (dB)"
    needs = (SCIKIT_LEARN, PILLOW)
    defaults = Defaults(steps=200, batch_size=32, lr=3e-3)

    def load(self, folder: Path | None = None) -> Data:
        """Clean patches in [0, 1], every fifth for testing with noise that is fixed."""
        SCIKIT_LEARN.require(self.name)
        PILLOW.require(self.name)
        from sklearn.datasets import load_sample_images

        patches = torch.cat([_patches(image) for image in load_sample_images().images])
        noise = NOISE * torch.randn(patches.shape, generator=generator(0, 0))
        # Every fifth, not the last ones: those are all the lower part of one photograph.
        held_out = torch.arange(len(patches)) % 5 == 0
        return Data((patches[~held_out],), (patches[held_out], noise[held_out]))

    def model(self) -> nn.Module:
        """Width 16."""
        return UNet(16)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The squared error of the predicted noise over its variance, the mean over all pixels."""
        clean, noise = batch
        # Divided before it is squared, so that the loss begins at 1.
        return F.mse_loss(model(clean + noise).float() / NOISE, noise / NOISE)

    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """The peak signal-to-noise ratio of the cleaned patches, in decibels."""
        clean, noise = batch
        error = (model(clean + noise).float() - noise).square().mean(dim=(1, 2, 3))
        return -10 * error.log10().mean()

    def batch(self, train: Batch, seed: int, step: int, size: int) -> Batch:
        """Random patches, each with noise of its own."""
        (patches,) = train
        index = shuffled(len(patches), seed=seed, step=step, size=size)
        # Another sequence than that of the patches: `~seed` is the seed of no run.
        noise = NOISE * torch.randn((size, 3, SIDE, SIDE), generator=generator(~seed, step))
        return patches[index.to(patches.device)], noise.to(patches.device)


def _patches(image: object) -> Tensor:
    """All patches of an image `(h, w, 3)` of bytes that do not overlap, `(n, 3, SIDE, SIDE)`."""
    pixels = torch.tensor(image).permute(2, 0, 1).float() / 255
    tiles = pixels.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE)
