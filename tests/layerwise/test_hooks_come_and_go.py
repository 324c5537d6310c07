"""Nodes that a user begins to watch come to the loss scale, which may be far above their window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradscale.backward.user_hooks import watched_numbers
from gradscale.emulation import emulate
from gradscale.recipes import find
from gradscale.recipes.towers import TwoTowers
from gradscale.scaler import GradScaler


class Trial:
    """The recipe `towers` in float16, whose towers need scales 35 octaves apart."""

    def __init__(self) -> None:
        self.recipe = find("towers")
        self.train = self.recipe.load().train
        torch.manual_seed(0)
        self.model = self.recipe.model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 2e-3, eps=1e-15)
        self.scaler = GradScaler("cpu", layerwise=True)
        self.steps = self.skipped = 0

    def step(self) -> None:
        self.optimizer.zero_grad()
        batch = self.recipe.batch(self.train, 0, self.steps, 64)
        with torch.autocast("cpu", torch.float16), emulate():
            self.scaler.scale(self.recipe.loss(self.model, batch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        self.skipped += self.scaler.last_step.skipped


def alive(tower: nn.Module) -> bool:
    return all(p.grad is not None and bool(p.grad.any()) for p in tower.parameters())


def watching(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.register_hook(lambda gradient: None)


def trained(steps: int) -> Trial:
    trial = Trial()
    for _ in range(steps):
        trial.step()
    assert trial.skipped == 0
    assert trial.scaler.get_scale() >= 2.0**40, "most leaves belong to groups that need it"
    return trial


def test_a_node_that_is_watched_falls_into_its_window_at_once():
    trial = trained(12)
    assert isinstance(trial.model, TwoTowers)
    tower = trial.model.name
    handle = tower[3].register_forward_hook(watching)
    for _ in range(4):
        trial.step()
    # One step that nobody measured, and one that was: its window is known from before.
    assert trial.skipped == 2
    assert trial.scaler.get_scale() <= 2.0**16
    assert alive(trial.model.name)
    assert alive(trial.model.centre)
    handle.remove()
    for _ in range(4):
        trial.step()
    assert trial.skipped == 2
    assert alive(trial.model.name)
    assert alive(trial.model.centre)


@pytest.mark.parametrize("hooked", [1, 3])
def test_a_new_graph_that_begins_far_too_high_finds_down_in_a_logarithm_of_it(hooked):
    trial = trained(12)
    assert isinstance(trial.model, TwoTowers)
    layers = [layer for layer in trial.model.name if isinstance(layer, nn.Linear)]
    for layer in layers[-hooked:]:  # each adds nodes of its own to the graph
        layer.register_full_backward_hook(lambda module, inputs, outputs: None)
    for _ in range(12):
        trial.step()
    # The window lies 34 octaves below: by steps of 2 alone it would take 17.
    assert trial.skipped <= 8
    assert trial.scaler.get_scale() <= 2.0**16
    assert alive(trial.model.name)
    assert alive(trial.model.centre)


def test_the_scalers_own_hooks_are_no_users_hooks():
    trial = Trial()
    trial.step()
    before = len(watched_numbers())
    for _ in range(3):
        trial.step()
    assert len(watched_numbers()) == before
