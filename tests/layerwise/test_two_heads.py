"""Heads on one trunk whose losses differ in unit: the small one's gradients meet the large ones."""

import pytest
import torch
from torch import Tensor, nn

from gradscale import GradScaler


class Heads(nn.Module):
    """A trunk and two heads in float16; the unit of the second loss is `2**octaves` larger."""

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.unit = 2.0**-octaves
        self.trunk = self.deep()
        self.large, self.small = self.deep(), self.deep()

    @staticmethod
    def deep() -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.trunk, x.half())
        large, small = through(self.large, x).float(), through(self.small, x).float()
        return large.square().mean() + self.unit * small.square().mean()


def through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = torch.tanh(x @ layer.weight.half().T)
    return x


@pytest.mark.parametrize("octaves", (0, 20, 40, 60))
def test_no_gradient_of_a_head_is_lost_where_the_heads_meet(octaves: int) -> None:
    torch.manual_seed(0)
    model = Heads(octaves)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = GradScaler("cpu", layerwise=True)
    x = torch.randn(16, 8)
    for _ in range(12):
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
    found = [layer.weight.grad for layer in model.small]
    torch.manual_seed(0)
    alone = Heads(0)  # in a unit of its own, where one scale is enough
    loss = through(alone.small, through(alone.trunk, x.half())).float().square().mean()
    (2.0**10 * loss).backward()
    for layer, gradient in zip(alone.small, found, strict=True):
        expected = layer.weight.grad / 2.0**10
        error = (gradient * 2.0**octaves - expected).norm() / expected.norm()
        assert error < 5e-3
