"""ResNet-50 (He et al. 2016, arXiv 1512.03385)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
    """A residual network of bottlenecks: `(n, 3, h, w)` to logits `(n, classes)`.

    ResNet-50 is ``resnet(64, (3, 4, 6, 3), 1000)``, with the stride in the 3 x 3 convolution, as it
    is trained today: 25,557,032 parameters.
    """
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


def image_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy; the batch is images and labels `(n,)`."""
    return F.cross_entropy(model(batch[0]).float(), batch[1])
