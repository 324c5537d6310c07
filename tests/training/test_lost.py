"""What a run says it lost is what `gradscale.truth` finds on the same batch and weights."""

from __future__ import annotations

import copy

import pytest
import torch

from gradscale.training import Trial, load_data, settings_for
from gradscale.training.precision import computing_in
from gradscale.truth import measure_lost


@pytest.mark.parametrize(
    ("precision", "scaling"), [("fp16", "none"), ("fp16", "static"), ("e5m2", "none")]
)
def test_the_share_of_a_run_is_that_of_measure_lost(precision, scaling, monkeypatch):
    monkeypatch.setattr("gradscale.training.trial.LOST_SAMPLES", 1)
    settings = settings_for(
        "digits", device="cpu", steps=2, batch_size=16, threads=1, format=precision,
        policy=scaling, loss_divisor=2.0**14,
    )  # fmt: skip
    trial = Trial(settings, load_data(settings))
    trial.advance()
    model = copy.deepcopy(trial.model)
    batch = trial.recipe.batch(trial.data.train, settings.seed, trial.step, settings.batch_size)
    scale = 1.0 if trial.scaler is None else trial.scaler.get_scale()

    trial._seed()
    with computing_in(precision, "cpu", settings.emulate):
        found = measure_lost(
            model,
            lambda model: trial.recipe.loss(model, batch) / settings.loss_divisor,
            scale=scale,
            format=precision,
        )
    trial.advance()
    assert trial.samples == 1
    whole = trial.lost["activations"] + trial.lost["parameters"]
    assert (whole.flushed, whole.nonzero) == (found.flushed, found.nonzero)
    assert whole.flushed > 0


def test_a_plan_is_measured_as_it_is(monkeypatch):
    """A tensor that somebody hooks is moved to the loss scale, where it would be lost."""
    monkeypatch.setattr("gradscale.training.trial.LOST_SAMPLES", 1)
    settings = settings_for(
        "towers", device="cpu", steps=40, batch_size=16, threads=1, policy="layerwise"
    )
    trial = Trial(settings, load_data(settings))
    while not trial.done:
        trial.advance()
    torch.manual_seed(0)
    assert trial.samples == 1 and trial.lost["activations"].lost_share < 1e-3
