"""Two losses in different units: what a single scale must hold at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def output_gradients(seed: int) -> tuple[Tensor, Tensor]:
    """Of the last layer of each tower: where autocast first stores a gradient in float16."""
    recipe = find("towers")
    data = recipe.load()
    torch.manual_seed(seed)
    model = recipe.model()
    assert isinstance(model, TwoTowers)
    found: list[Tensor] = []
    for tower in (model.name, model.centre):
        tower.register_forward_hook(lambda module, inputs, output: found.append(output))
    loss = recipe.loss(model, recipe.batch(data.train, seed, 0, 64))
    name, centre = torch.autograd.grad(loss, found)
    return name, centre


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_one_tower_fits_into_float16_all_of_the_other_is_flushed(seed):
    name, centre = output_gradients(seed)
    assert not (centre * 2.0**16).to(torch.float16).any()
    # Sums over the batch and the growth of the weights take the 6 octaves that are left here:
    # a constant of 2^18 skips a quarter of the steps, see below.
    assert (name * 2.0**16).to(torch.float16).abs().max() >= 2.0**9
    # Together they would need 2^36 above and below.
    assert name.abs().max() / centre.abs().max() > 2.0**35


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "e4m3"])
def test_layer_wise_scaling_trains_both_and_no_other_strategy_does(precision):
    explained = {}
    for scaling in ("torch", "guarded", "layerwise"):
        settings = settings_for("towers", format=precision, policy=scaling, device="cpu")
        trial = Trial(settings, load_data(settings))
        while not trial.done:
            trial.advance()
        explained[scaling] = trial.evaluate()[1]
    assert explained.pop("layerwise") > 0.95
    assert max(explained.values()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("log2_scale", [16, 17, 18])
def test_no_constant_trains_both(log2_scale):
    settings = settings_for(
        "towers", format="fp16", policy="static", init_scale=2.0**log2_scale, device="cpu"
    )
    trial = Trial(settings, load_data(settings))
    while not trial.done:
        trial.advance()
    assert trial.evaluate()[1] < 0.05
