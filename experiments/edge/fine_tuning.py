"""A pretrained encoder that learns a new task: whole, or by low-rank updates (Hu et al. 2021)."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import classify
from task import Task, Training
from vision_transformer import Block, VisionTransformer

RANK, PRETRAINING = 4, 150
BEFORE, AFTER = range(5), range(5, 10)


class LowRank(nn.Module):
    """A linear layer that is frozen, plus a product of two thin matrices, at first 0."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the frozen layer, until `up` has learned."""
        return self.frozen(x) + self.up(self.down(x))


@lru_cache(maxsize=8)
def pretrained(seed: int) -> dict[str, Tensor]:
    """Weights of an encoder that tells the digits 0 to 4, trained in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        training = classify.training(model, optimizer, 64, seed, classes=BEFORE)
        for step in range(PRETRAINING):
            optimizer.zero_grad()
            training.loss(step).backward()
            optimizer.step()
    return model.state_dict()


def adapted(model: VisionTransformer) -> None:
    """Freezes all but the head, and puts a low-rank update beside each linear layer of a block."""
    model.requires_grad_(False)
    for block in model.blocks:
        assert isinstance(block, Block)
        for name in ("qkv", "out", "up", "down"):
            setattr(block, name, LowRank(getattr(block, name)))
            getattr(block, name).frozen.requires_grad_(False)
    model.head.requires_grad_(True)


def begin(how: str, octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    model = VisionTransformer()
    model.load_state_dict(pretrained(seed))
    model.head.reset_parameters()
    if how == "lora":
        adapted(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
    lr = {"whole": 2e-3, "lora": 1e-2}[how]
    optimizer = torch.optim.Adam(learned, lr=lr, eps=1e-8 * 2.0**-octaves)
    return classify.training(model, optimizer, 64, seed, octaves=octaves, classes=AFTER)


def task(how: str) -> Task:
    """The task `how` is "whole" or "lora"."""
    what = {"whole": "all weights", "lora": f"low-rank updates of rank {RANK} and the head"}[how]
    return Task(
        name=f"fine-tuning-{how}",
        about=f"vision transformer that knows digits 0 to 4 learns 5 to 9, {what}, Adam",
        knob="octaves by which the loss is divided",
        values=(0, 8, 16, 24, 32),
        fast=(0, 32),
        steps=100,
        score="accuracy",
        chance=0.2,
        begin=partial(begin, how),
    )
