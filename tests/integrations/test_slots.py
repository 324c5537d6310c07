"""Hosts with a slot for a scaler: imitated by their calls. Those that install are run, too."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, dead_weights, fading_batch

BAD = 3


def imitated(package, name, **members):
    """An object of a class that calls itself by a host's name."""
    cls = type(name, (), {"__module__": f"{package}.trainer", **members})
    return cls()


class Loop:
    """What the imitated hosts do around their scaler."""

    def __init__(self):
        self.model = Fading()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2, momentum=0.9)
        self.dead = []

    def run(self, scaler_of, steps=6, after=lambda: None):
        for number in range(steps):
            scaler = scaler_of()
            x, y = fading_batch(number)
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(self.model(x).float(), y)
            scaler.scale(loss * (torch.inf if number == BAD else 1.0)).backward()
            self.dead.append(dead_weights(self.model))
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
            scaler.step(self.optimizer)
            scaler.update()
            after()
        return self


def torch_scaler():
    return torch.amp.GradScaler("cpu", enabled=False)


SLOTS = {
    "nnU-Net": (
        lambda: imitated("nnunetv2", "nnUNetTrainer", device=torch.device("cpu"), grad_scaler=None),
        lambda host: host.grad_scaler,
    ),
    "detectron2": (
        lambda: imitated("detectron2", "AMPTrainer", grad_scaler=torch_scaler()),
        lambda host: host.grad_scaler,
    ),
    "detectron2's DefaultTrainer": (
        lambda: imitated(
            "detectron2", "DefaultTrainer", _trainer=SimpleNamespace(grad_scaler=torch_scaler())
        ),
        lambda host: host._trainer.grad_scaler,
    ),
    "timm": (
        lambda: imitated("timm", "NativeScaler", _scaler=torch_scaler()),
        lambda host: host._scaler,
    ),
    "composer": (
        lambda: imitated("composer", "Trainer", state=SimpleNamespace(scaler=torch_scaler())),
        lambda host: host.state.scaler,
    ),
    "mmengine": (
        lambda: imitated(
            "mmengine", "AmpOptimWrapper", loss_scaler=torch_scaler(), _scale_update_param=512.0
        ),
        lambda host: host.loss_scaler,
    ),
    "nerfstudio": (
        lambda: imitated(
            "nerfstudio",
            "Trainer",
            device="cpu",
            grad_scaler=torch_scaler(),
            optimizers=SimpleNamespace(scheduler_step_all=lambda step: None),
        ),
        lambda host: host.grad_scaler,
    ),
    "speechbrain": (
        lambda: imitated("speechbrain", "Brain", device="cpu", scaler=torch_scaler()),
        lambda host: host.scaler,
    ),
}


@pytest.mark.parametrize("name", SLOTS)
def test_the_slot_has_a_scaler_that_loses_nothing_and_gives_it_back(name):
    make, slot = SLOTS[name]
    host = make()
    before = slot(host)
    attachment = gradscale.attach(host, layerwise=True)
    assert slot(host) is attachment.scaler and "\n" not in repr(attachment)
    loop = Loop().run(lambda: slot(host))
    assert loop.dead[2:] == [0] * 4
    assert attachment.scaler.counters.reasons == {"nonfinite_loss": 1}
    attachment.detach()
    assert slot(host) is before


def test_a_second_scaler_in_a_slot_is_refused():
    host = SLOTS["detectron2"][0]()
    gradscale.attach(host)
    with pytest.raises(RuntimeError, match=r"attach\(AMPTrainer\).*already.*detach"):
        gradscale.attach(host)


def test_a_host_without_its_slot_is_told_how_to_train_in_half_precision():
    simple = imitated("detectron2", "DefaultTrainer", _trainer=SimpleNamespace())
    with pytest.raises(ValueError, match=r"does not train in float16.*AMP.ENABLED = True"):
        gradscale.attach(simple)


def test_a_scaler_that_is_off_where_there_is_an_accelerator_means_another_format(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"attach\(Brain\).*precision='fp16'"):
        gradscale.attach(SLOTS["speechbrain"][0]())


def test_mmengine_sets_no_scale_of_its_own_any_more():
    host = SLOTS["mmengine"][0]()
    attachment = gradscale.attach(host)
    assert host._scale_update_param is None
    attachment.detach()
    assert host._scale_update_param == 512.0


def test_a_mmengine_runner_that_has_built_its_wrapper():
    runner = imitated("mmengine", "Runner", optim_wrapper=SLOTS["mmengine"][0]())
    attachment = gradscale.attach(runner)
    assert runner.optim_wrapper.loss_scaler is attachment.scaler
    unbuilt = imitated("mmengine", "Runner", optim_wrapper={"type": "AmpOptimWrapper"})
    with pytest.raises(ValueError, match=r"no `optim_wrapper.loss_scaler`: if it makes it later"):
        gradscale.attach(unbuilt)


def test_nerfstudios_schedules_wait_for_a_step_that_bad_data_cost():
    moved = []
    host = SLOTS["nerfstudio"][0]()
    host.optimizers.scheduler_step_all = moved.append
    attachment = gradscale.attach(host)

    def schedule():  # as its `train_iteration`, by the scale: bad data lowers none of ours
        host.optimizers.scheduler_step_all(len(moved))

    Loop().run(lambda: host.grad_scaler, after=schedule)
    assert len(moved) == 5 and attachment.scaler.get_scale() == 65536.0
    with pytest.raises(RuntimeError, match=r"before `setup\(\)`"):
        gradscale.attach(imitated("nerfstudio", "Trainer", grad_scaler=torch_scaler()))


def test_speechbrains_checkpointer_saves_the_scaler_that_trains():
    host = SLOTS["speechbrain"][0]()
    host.checkpointer = SimpleNamespace(recoverables={"scaler": host.scaler})
    before = host.scaler
    attachment = gradscale.attach(host)
    assert host.checkpointer.recoverables["scaler"] is attachment.scaler
    attachment.detach()
    assert host.checkpointer.recoverables["scaler"] is before
    host.checkpointer.recoverables.clear()
    gradscale.attach(host).detach()
    assert host.checkpointer.recoverables == {}


class Ultralytics(Loop):
    """The calls of `ultralytics.engine.trainer.BaseTrainer` around its scaler."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")
        self.callbacks = {"on_pretrain_routine_end": []}
        self.ema, self.averaged = None, []

    def add_callback(self, event, callback):
        self.callbacks[event].append(callback)

    def _load_checkpoint_state(self, ckpt):
        self.scaler.load_state_dict(ckpt["scaler"])

    def train(self, resume=None):
        self.scaler = torch_scaler()
        self.ema = SimpleNamespace(update=self.averaged.append)
        if resume is not None:
            self._load_checkpoint_state(resume)
        for callback in self.callbacks["on_pretrain_routine_end"]:
            callback(self)
        return self.run(lambda: self.scaler, after=lambda: self.ema.update(self.model))


def test_ultralytics_averages_no_skipped_step_and_resumes():
    cls = type("BaseTrainer", (Ultralytics,), {"__module__": "ultralytics.engine.trainer"})
    host = cls()
    attachment = gradscale.attach(host, layerwise=True, init_scale=1024.0)
    host.train()
    assert host.scaler is attachment.scaler and len(host.averaged) == 5
    saved = attachment.scaler.state_dict()
    again = cls()
    resumed = gradscale.attach(again, layerwise=True, init_scale=1024.0)
    again.train(resume={"scaler": saved})
    assert again.scaler is resumed.scaler and resumed.scaler.counters.steps == 12
    resumed.detach()
    again.train()
    assert again.scaler is not resumed.scaler


def test_two_slots_have_a_scaler_each():
    state = SimpleNamespace(g_scaler=None, d_scaler=None)
    attachment = gradscale.attach(imitated("monai", "AdversarialTrainer", state=state))
    assert attachment.scalers == (state.g_scaler, state.d_scaler)
    assert state.g_scaler is not state.d_scaler


def test_kohyas_patch_of_unscaling_does_no_harm():
    loop = Loop()
    scaler = gradscale.GradScaler("cpu")
    original = scaler._unscale_grads_

    def patched(optimizer, inv_scale, found_inf, allow_fp16):
        return original(optimizer, inv_scale, found_inf, True)

    scaler._unscale_grads_ = patched
    loop.run(lambda: scaler)
    plain, twin = Loop(), gradscale.GradScaler("cpu")
    plain.run(lambda: twin)
    assert all(map(torch.equal, loop.model.parameters(), plain.model.parameters()))


def test_icefalls_block_around_a_low_scale_works_as_it_is():
    scaler = gradscale.GradScaler("cpu", init_scale=1.0)
    loop = Loop()
    for batch in range(3):

        def after(batch=batch):
            scale = scaler._scale.item()
            if scale < 8.0 or (scale < 32.0 and batch % 400 == 0):
                scaler.update(scale * 2.0)

        loop.run(lambda: scaler, steps=1, after=after)
    assert scaler.get_scale() == 8.0 and scaler.counters.steps == 3


def test_no_host_was_imported_for_its_name():
    assert not {"detectron2", "ultralytics", "nerfstudio"} & sys.modules.keys()
