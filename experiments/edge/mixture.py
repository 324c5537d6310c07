"""A mixture of experts: its router is balanced by an auxiliary loss with a small weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.digits import Digits
from task import Task, Training

WIDTH, EXPERTS = 32, 8


class Experts(nn.Module):
    """The best two of eight experts for each input, weighted by the router's softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(EXPERTS)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(n, 10)` and the router's probabilities `(n, EXPERTS)`, both float32."""
        state = F.gelu(self.enter(images.flatten(1)))
        probabilities = self.router(state).float().softmax(1)
        weights, chosen = probabilities.topk(2, dim=1)
        rows: list[Tensor] = [state.float()]
        for index, expert in enumerate(self.experts):
            weight = (weights * (chosen == index)).sum(1, keepdim=True)
            rows.append(weight * expert(state).float())
        return self.leave(torch.stack(rows).sum(0)).float(), probabilities


def balance(probabilities: Tensor) -> Tensor:
    """Fedus et al. 2021 (arXiv 2101.03961), equation 4: 1 where all experts are used alike."""
    share = F.one_hot(probabilities.argmax(1), EXPERTS).float().mean(0)
    return EXPERTS * (share * probabilities.mean(0)).sum()


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the auxiliary loss counts 2 to minus that."""
    (images, labels), (test, truth) = Digits().load()
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)

    def loss(step: int) -> Tensor:
        index = torch.randint(len(images), (64,), generator=generator(seed, step))
        logits, probabilities = model(images[index])
        return F.cross_entropy(logits, labels[index]) + 2.0**-octaves * balance(probabilities)

    def score() -> Tensor:
        return (model(test)[0].argmax(1) == truth).float().mean()

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="mixture",
    about="eight experts on digits, two for each image, Adam",
    knob="octaves by which the router's loss is divided",
    values=(0, 7, 14, 28),
    fast=(0, 14),
    steps=150,
    score="accuracy",
    chance=0.1,
    begin=begin,
)
