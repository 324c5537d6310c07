"""A denoising diffusion model (Ho et al. 2020, arXiv 2006.11239) of handwritten digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.digits import Digits
from task import Task, Training

WIDTH, BATCH = 24, 64


def noised(images: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images under noise of random strength, its angle, the noise (Nichol & Dhariwal 2021)."""
    angle = 0.5 * math.pi * torch.rand(len(images), 1, 1, 1, generator=g)
    noise = torch.randn(images.shape, generator=g)
    return angle.cos() * images + angle.sin() * noise, angle, noise


class Residual(nn.Module):
    """A convolution that is told how strong the noise is, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.told = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        """`(n, WIDTH, h, w)` to the same; strength is `(n, WIDTH)`."""
        return x + self.conv(F.silu(self.norm(x) + self.told(strength)[:, :, None, None]))


class Denoiser(nn.Module):
    """Six residual convolutions, the middle ones at half the resolution; it names the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU())
        self.enter, self.leave = (nn.Conv2d(*c, 3, padding=1) for c in ((1, WIDTH), (WIDTH, 1)))
        self.stages = nn.ModuleList(Residual() for _ in range(6))

    def forward(self, images: Tensor, angle: Tensor) -> Tensor:
        """The noise in `(n, 1, 8, 8)`, float32."""
        strength = self.strength(torch.cat([angle.cos(), angle.sin()], dim=1).flatten(1))
        fine = self.enter(images)
        for stage in self.stages[:2]:
            fine = stage(fine, strength)
        coarse = F.avg_pool2d(fine, 2)
        for stage in self.stages[2:4]:
            coarse = stage(coarse, strength)
        fine = fine + F.interpolate(coarse, scale_factor=2.0)
        for stage in self.stages[4:]:
            fine = stage(fine, strength)
        return self.leave(F.silu(fine)).float()


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    (images, _), (test, _) = Digits().load()
    model = Denoiser()
    # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-8 * 2.0**-octaves)

    def error(clean: Tensor, g: torch.Generator) -> Tensor:
        seen, angle, noise = noised(clean, g)
        return F.mse_loss(model(seen, angle), noise)

    def loss(step: int) -> Tensor:
        g = generator(seed, step)
        index = torch.randint(len(images), (BATCH,), generator=g)
        return error(images[index], g) * 2.0**-octaves

    def score() -> Tensor:
        return 1 - error(test, generator(0, 2**20))

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="diffusion",
    about="denoising diffusion model of digits, Adam",
    knob="octaves by which the loss is divided",
    values=(0, 12, 24, 32),
    fast=(0, 32),
    steps=150,
    score="R² of the noise",
    chance=0.0,
    begin=begin,
)
