"""One run: what dividing the loss does, and what each scaling makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradscale.training import RunFolder, Trial, load_data, run, settings_for


@pytest.fixture(scope="module")
def data():
    return load_data(settings_for("digits", device="cpu"))


def trial(data, **given) -> Trial:
    fields = {"device": "cpu", "steps": 4, "batch_size": 16, "threads": 1, **given}
    return Trial(settings_for("digits", **fields), data)


def weights(trial: Trial) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trial.model.parameters()])


def train(trial: Trial) -> Trial:
    while not trial.done:
        trial.advance()
    return trial


def test_the_loss_of_digits_goes_down(data):
    run = trial(data, format="fp32", steps=12, batch_size=64)
    losses = [run.advance().loss for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def test_dividing_by_a_power_of_two_changes_no_bit_in_float32(data):
    ordinary = train(trial(data, format="fp32"))
    divided = train(trial(data, format="fp32", loss_divisor=2.0**14))
    assert torch.equal(weights(ordinary), weights(divided))


def test_a_scale_that_undoes_the_divisor_changes_no_bit_in_float16(data):
    ordinary = train(trial(data, policy="none"))
    divided = train(trial(data, policy="static", loss_divisor=2.0**10, init_scale=2.0**10))
    assert torch.equal(weights(ordinary), weights(divided))


def test_our_dynamic_scaling_trains_as_torchs(data):
    ours = train(trial(data, policy="dynamic", init_scale=2.0**30))
    torchs = train(trial(data, policy="torch", init_scale=2.0**30))
    assert torch.equal(weights(ours), weights(torchs))
    assert ours.skips == torchs.skips == {"overflow": 4}


def test_without_scaling_a_divided_loss_loses_gradients_that_scaling_keeps(data):
    none = train(trial(data, policy="none", loss_divisor=2.0**14))
    scaled = train(trial(data, policy="last-maximum", loss_divisor=2.0**14))
    assert none.lost["activations"].lost_share > 0.5
    assert scaled.lost["activations"].lost_share < 0.01


def test_eight_bits_lose_more_than_sixteen(data):
    shares = [
        train(trial(data, format=precision, policy="none", loss_divisor=2.0**8))
        .lost["activations"]
        .lost_share
        for precision in ("fp16", "e5m2", "e4m3")
    ]
    assert shares == sorted(shares) and shares[0] < shares[2]


def with_dropout(trial: Trial) -> Trial:
    trial.model.insert(3, nn.Dropout(0.5))
    return trial


def test_measuring_what_is_lost_does_not_change_the_run(data, monkeypatch):
    measured = train(with_dropout(trial(data)))
    monkeypatch.setattr("gradscale.training.trial.LOST_SAMPLES", 0)
    unmeasured = train(with_dropout(trial(data)))
    assert unmeasured.lost["activations"].lost_share is None
    assert torch.equal(weights(measured), weights(unmeasured))


def test_a_run_that_diverges_says_nan(data, tmp_path):
    chosen = settings_for(
        "digits", format="fp32", device="cpu", steps=3, batch_size=8, lr=1e30, threads=1
    )
    result = run(chosen, data, RunFolder(tmp_path))
    assert not math.isfinite(result["loss"])
    assert '"nan"' in (tmp_path / "result.json").read_text()


def test_a_finished_run_reads_back_as_it_was_returned(data, tmp_path):
    chosen = settings_for("digits", device="cpu", steps=6, batch_size=8, threads=1)
    result = run(chosen, data, RunFolder(tmp_path))
    assert RunFolder(tmp_path).result == result
