"""A recurrence that must carry a symbol through time: gradients shrink or grow at every step.

Its cells are called one after the other, or `nn.GRU` and `nn.LSTM` call them: those project the
inputs of all times in one product, so that all times' gradients meet in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from task import Task, Training

SYMBOLS, WIDTH, BATCH = 8, 48, 32


def memory(length: int) -> Tensor:
    """What gates begin with that forget after 1 to `length` steps (Tallec & Ollivier 2018).

    Without it float32 itself would not learn the task (arXiv 1804.11188).
    """
    return torch.log(torch.rand(WIDTH) * (length - 1) + 1)


class Cells(nn.Module):
    """GRU cells in a loop."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(SYMBOLS, WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)
        self.cell.bias_ih.data[WIDTH : 2 * WIDTH] += memory(length)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(n, SYMBOLS)` of what stood first in `(n, time, SYMBOLS)`."""
        state = torch.zeros(len(inputs), WIDTH)
        for now in inputs.unbind(1):
            state = self.cell(now, state)
        return self.head(state)


class Whole(nn.Module):
    """`nn.GRU` or `nn.LSTM`, over all times in one call."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], length: int) -> None:
        super().__init__()
        self.recurrence = kind(SYMBOLS, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, SYMBOLS)
        keep = memory(length)
        bias = self.recurrence.bias_ih_l0.data
        bias[WIDTH : 2 * WIDTH] += keep  # update gate, or forget gate
        if kind is nn.LSTM:
            bias[:WIDTH] -= keep  # input gate

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(n, SYMBOLS)` of what stood first in `(n, time, SYMBOLS)`."""
        return self.head(self.recurrence(inputs)[0][:, -1])


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "cells": Cells,
    "gru": partial(Whole, nn.GRU),
    "lstm": partial(Whole, nn.LSTM),
}
ABOUT = {"cells": "GRU cells that recall", "gru": "`nn.GRU` recalls", "lstm": "`nn.LSTM` recalls"}


def begin(network: str, length: float, seed: int) -> Training:
    """`length`: steps from the symbol to the question, through noise."""
    model = NETWORKS[network](int(length))
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


def task(network: str) -> Task:
    """The task with one of `NETWORKS`."""
    return Task(
        name="recurrence" if network == "cells" else f"recurrence-{network}",
        about=f"{ABOUT[network]} a symbol after many steps of noise, Adam",
        knob="steps through time",
        values=(16, 32, 64) if network == "cells" else (16, 32),
        fast=(16, 32),
        steps=300,
        score="accuracy",
        chance=1 / SYMBOLS,
        begin=partial(begin, network),
    )
