"""A recurrence that must carry a symbol through time: gradients shrink or grow at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from task import Task, Training

SYMBOLS, WIDTH, BATCH = 8, 48, 32


class Recall(nn.Module):
    """GRU cells in a loop, with the biases of Tallec & Ollivier 2018 (arXiv 1804.11188)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(SYMBOLS, WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)
        # Update gates that forget after 1 to `length` steps, or float32 itself would not learn it.
        memory = torch.log(torch.rand(WIDTH) * (length - 1) + 1)
        self.cell.bias_ih.data[WIDTH : 2 * WIDTH] += memory

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(n, SYMBOLS)` of what stood first in `(n, time, SYMBOLS)`."""
        state = torch.zeros(len(inputs), WIDTH)
        for now in inputs.unbind(1):
            state = self.cell(now, state)
        return self.head(state)


def begin(length: float, seed: int) -> Training:
    """`length`: steps from the symbol to the question, through noise."""
    model = Recall(int(length))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-15)

    def batch(step: int, count: int) -> tuple[Tensor, Tensor]:
        g = generator(seed, step)
        first = torch.randint(SYMBOLS, (count,), generator=g)
        inputs = 0.1 * torch.randn(count, int(length), SYMBOLS, generator=g)
        inputs[:, 0] = F.one_hot(first, SYMBOLS).float()
        return inputs, first

    def loss(step: int) -> Tensor:
        inputs, first = batch(step, BATCH)
        return F.cross_entropy(model(inputs).float(), first)

    def score() -> Tensor:
        inputs, first = batch(2**20, 512)
        return (model(inputs).argmax(1) == first).float().mean()

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="recurrence",
    about="GRU cells that recall a symbol after many steps of noise, Adam",
    knob="steps through time",
    values=(16, 32, 64),
    fast=(16, 32),
    steps=300,
    score="accuracy",
    chance=1 / SYMBOLS,
    begin=begin,
)
