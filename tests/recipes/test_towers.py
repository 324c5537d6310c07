"""Two losses in different units: what a single scale must hold at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.recipes import find
from gradscale.recipes.digits import Digits
from gradscale.recipes.towers import PIXEL, TwoTowers, ink_centre
from gradscale.training import Trial, load_data, settings_for


def test_the_images_and_their_split_are_those_of_digits():
    for towers, digits in zip(find("towers").load(), Digits().load(), strict=True):
        assert torch.equal(towers[0], digits[0])
        assert torch.equal(towers[1], digits[1])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 7), (3, 4), (7, 7)])
def test_a_single_dot_is_its_own_centre(row, column):
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, row, column] = 5.0
    assert torch.equal(ink_centre(image), PIXEL * torch.tensor([[row - 3.5, column - 3.5]]))


def gradients(seed: int) -> tuple[Tensor, Tensor]:
    recipe = find("towers")
    data = recipe.load()
    torch.manual_seed(seed)
    model = recipe.model()
    assert isinstance(model, TwoTowers)
    recipe.loss(model, recipe.batch(data.train, seed, 0, 64)).backward()
    found = [
        torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])
        for tower in (model.name, model.centre)
    ]
    return found[0], found[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_single_scale_keeps_both_towers_in_float16(seed):
    half = FloatFormat.of(torch.float16)
    name, centre = gradients(seed)
    highest = math.log2(half.overflow_threshold / name.abs().max().item())
    at_highest = (centre.abs() * 2.0 ** math.floor(highest)).to(torch.float16)
    assert (at_highest == 0).double().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "e5m2", "e4m3"])
def test_layer_wise_scaling_trains_both_and_no_other_strategy_does(precision):
    explained = {}
    for scaling in ("none", "dynamic", "torch", "guarded", "layerwise"):
        settings = settings_for("towers", format=precision, policy=scaling, device="cpu")
        trial = Trial(settings, load_data(settings))
        while not trial.done:
            trial.advance()
        explained[scaling] = trial.evaluate()[1]
    assert explained.pop("layerwise") > 0.95
    assert max(explained.values()) < 0.05
