"""Which model parameters belong to, found without being told."""

from __future__ import annotations

import gc

import torch
from torch import nn

from gradscale.owning_module import owning_module


def test_it_is_the_outermost_module_not_the_layer() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 1))
    assert owning_module([model[0][0].weight]) is model


def test_of_several_models_it_is_the_one_that_holds_most() -> None:
    shared = nn.Linear(2, 2)
    small, large = nn.Sequential(shared), nn.Sequential(shared, nn.Linear(2, 2))
    assert owning_module(large.parameters()) is large
    del small


def test_parameters_of_no_module_have_none() -> None:
    assert owning_module([nn.Parameter(torch.ones(1))]) is None


def test_a_module_that_is_about_to_be_made_is_no_trouble() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            self.found = owning_module(model.parameters())

    model = nn.Sequential(nn.Linear(1, 1))
    early = Early.__new__(Early)
    assert owning_module(model.parameters()) is model
    del early


def test_nothing_is_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    weight = model[0].weight
    found = owning_module([weight])
    assert found is model
    del found, model
    gc.collect()
    assert owning_module([weight]) is None
