"""fastai: a real `Learner` on the CPU. It installs without torchvision, which it asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, fading_batch
from hosts import host

learner = host("fastai.learner")
core = host("fastai.data.core")
load = host("fastai.data.load")
host("fastai.callback.fp16")
training = host("fastai.callback.training")

BAD = 3


class Rows:
    """Forty-eight rows; those of the fourth batch have an infinite loss."""

    def __init__(self):
        self.x, self.y = fading_batch(0)

    def __len__(self):
        return 6 * 8

    def __getitem__(self, row):
        weight = torch.inf if row // 8 == BAD else 1.0
        return self.x[row % 8], (self.y[row % 8], torch.tensor(weight))


def loss_of(out, target):
    y, weight = target
    return (nn.functional.cross_entropy(out.float(), y, reduction="none") * weight).mean()


def learner_of(*callbacks):
    loaders = [load.DataLoader(Rows(), bs=8, shuffle=False) for _ in range(2)]
    it = learner.Learner(core.DataLoaders(*loaders), Fading(), loss_func=loss_of, cbs=callbacks)
    it.remove_cbs([cb for cb in it.cbs if type(cb).__name__ in ("ProgressCallback", "Recorder")])
    return it


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_learner_trains_skips_and_keeps_its_scaler_over_two_fits(layerwise):
    it = learner_of(training.GradientClip(1.0)).to_fp16()
    attachment = gradscale.attach(it, layerwise=layerwise)
    it.fit(1, 1e-3)
    counters = attachment.scaler.counters
    assert counters.steps == 6 and counters.reasons == {"nonfinite_loss": 1}
    assert all(bool(p.isfinite().all()) for p in it.model.parameters())
    it.fit(1, 1e-3)
    assert attachment.scaler.counters.steps == 12
    attachment.detach()
    it.fit(1, 1e-3)
    assert attachment.scaler.counters.steps == 12


def test_full_precision_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"attach\(Learner\).*`learner.to_fp16\(\)`"):
        gradscale.attach(learner_of())
    with pytest.raises(ValueError, match=r"to_fp16"):
        gradscale.attach(learner_of().to_bf16())


@pytest.mark.parametrize("settings", [{"sync_free": True}, {"undo": "optimizer"}])
def test_what_would_have_to_step_fastais_optimizer_is_refused(settings):
    with pytest.raises(ValueError, match=r"in the optimizer's place, and steps by itself"):
        gradscale.attach(learner_of().to_fp16(), **settings)
