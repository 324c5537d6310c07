"""A small language model, tuned by policy gradients: the advantage is a unit like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.networks import TransformerBlock
from task import Task, Training

SYMBOLS, TIME, WIDTH, BATCH = 16, 12, 32, 32


class Writer(nn.Module):
    """Two blocks that write a symbol after another; `(n, time)` to `(n, time, SYMBOLS)`."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.blocks = nn.Sequential(*(TransformerBlock(WIDTH, 2) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next symbol, float32."""
        state = self.symbols(text) + self.places(torch.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(state))).float()

    @torch.no_grad()
    def write(self, g: torch.Generator, count: int) -> Tensor:
        """Texts `(count, TIME)`, each begun with a random symbol."""
        text = torch.randint(SYMBOLS, (count, 1), generator=g)
        for _ in range(TIME - 1):
            chances = self(text)[:, -1].softmax(1).cpu()
            text = torch.cat([text, torch.multinomial(chances, 1, generator=g)], dim=1)
        return text


def reward(text: Tensor) -> Tensor:
    """1 for each symbol that is larger by one than the one before, cyclically, else 0."""
    return ((text[:, 1:] - text[:, :-1]) % SYMBOLS == 1).float()


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: advantages are divided by 2 to it."""
    model = Writer()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=2.0 ** (-50 - octaves))

    def loss(step: int) -> Tensor:
        text = model.write(generator(seed, step), BATCH)
        # Per symbol, as the reward is: the mean over the batch is the baseline.
        gained = reward(text)
        advantage = (gained - gained.mean()) * 2.0**-octaves
        logits = model(text[:, :-1])
        surprise = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="none")
        return (advantage.flatten() * surprise).mean()

    def score() -> Tensor:
        return reward(model.write(generator(0, 2**20), 256)).mean(1).mean()

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="policy-gradient",
    about="REINFORCE, a transformer of two blocks that must count, rollouts in the same precision",
    knob="octaves by which advantages are divided",
    values=(0, 8, 16, 24),
    fast=(0, 16),
    steps=120,
    score="reward",
    chance=1 / SYMBOLS,
    begin=begin,
)
