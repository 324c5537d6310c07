"""Single-shot detection (Liu et al. 2016, arXiv 1512.02325): few of many anchors hold something.

Three negatives for each positive, the hardest, as the paper has it; but the sum is divided by the
number of all anchors, as means do, so that its gradients shrink as anchors are added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.digits import Digits
from task import Task, Training

SIDE, CELLS, OBJECTS, NOTHING = 16, 2, 2, 10
WIDTH, BATCH = 32, 32


def scenes(images: Tensor, labels: Tensor, g: torch.Generator, count: int) -> tuple[Tensor, ...]:
    """Two digits in different quarters of a canvas, each moved by up to 2 pixels.

    Returns:
        Canvases `(count, 1, SIDE, SIDE)`; what stands in each cell `(count, CELLS**2)`, `NOTHING`
        where it is empty; by how much it was moved, in cells, `(count, CELLS**2, 2)`.
    """
    size = SIDE // CELLS
    canvas = torch.zeros(count, SIDE + 4, SIDE + 4)
    what = torch.full((count, CELLS**2), NOTHING)
    where = torch.zeros(count, CELLS**2, 2)
    for scene in range(count):
        cells = torch.randperm(CELLS**2, generator=g)[:OBJECTS].tolist()
        chosen = torch.randint(len(images), (OBJECTS,), generator=g).tolist()
        moved = torch.randint(-2, 3, (OBJECTS, 2), generator=g)
        for cell, index, (down, right) in zip(cells, chosen, moved.tolist(), strict=True):
            top = 2 + size * (cell // CELLS) + down
            left = 2 + size * (cell % CELLS) + right
            canvas[scene, top : top + size, left : left + size] += images[index, 0]
            what[scene, cell] = labels[index]
            where[scene, cell] = torch.tensor([down, right]) / size
    return canvas[:, None, 2:-2, 2:-2], what, where


class SingleShot(nn.Module):
    """Convolutions to one column a cell, then for each anchor 11 logits and 2 offsets."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        layers: list[nn.Module] = []
        for inputs, stride in ((1, 1), (WIDTH, 2), (WIDTH, 2), (WIDTH, 2)):
            conv = nn.Conv2d(inputs, WIDTH, 3, stride, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(4, WIDTH), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(WIDTH, anchors * (NOTHING + 3), 1)

    def forward(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(n, CELLS**2, anchors, 11)` and offsets `(n, CELLS**2, anchors, 2)`, float32."""
        seen = self.head(self.body(canvas)).float()
        seen = seen.flatten(2).transpose(1, 2).unflatten(2, (self.anchors, NOTHING + 3))
        return seen[..., : NOTHING + 1], seen[..., NOTHING + 1 :]


def begin(anchors: float, seed: int) -> Training:
    """`anchors`: a cell; the first is the one that a digit belongs to."""
    (images, labels), (held_out, truth) = Digits().load()
    model = SingleShot(int(anchors))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-15)

    def loss(step: int) -> Tensor:
        canvas, what, where = scenes(images, labels, generator(seed, step), BATCH)
        logits, offsets = model(canvas)
        found = what != NOTHING
        wanted = torch.full(logits.shape[:3], NOTHING)
        wanted[:, :, 0] = what
        named = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
        holds = (wanted != NOTHING).flatten()
        others = named[~holds]
        hardest = others.topk(min(len(others), 3 * int(found.sum()))).values
        offset = F.smooth_l1_loss(offsets[:, :, 0][found], where[found], reduction="sum")
        return (named[holds].sum() + hardest.sum() + offset) / wanted.numel()

    def score() -> Tensor:
        canvas, what, _ = scenes(held_out, truth, generator(0, 2**20), 128)
        seen = what != NOTHING
        return (model(canvas)[0][:, :, 0].argmax(-1)[seen] == what[seen]).float().mean()

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="detection",
    about="single-shot detector on scenes of two digits, a mean over all anchors, Adam",
    knob="anchors a cell",
    values=(1, 8, 64),
    fast=(1, 16),
    steps=400,
    score="digits found and named",
    chance=0.0,
    begin=begin,
)
