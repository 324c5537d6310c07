"""Fabric with the same precision plugin as the Trainer: real loops on the CPU in fp16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, dead_weights, fading_batch
from hosts import host

lightning = host("lightning")
plugins = host("gradscale.integrations.lightning")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}
BAD = 3


class Loop:
    """A loop as Fabric's users write it."""

    def __init__(self, kind="sgd", fabric=None, **settings):
        if fabric is None:
            self.plugin = plugins.Precision("cpu", **settings)
            fabric = lightning.Fabric(accelerator="cpu", plugins=self.plugin)
        self.fabric = fabric
        model = Fading()
        self.model, self.optimizer = fabric.setup(model, OPTIMIZERS[kind](model.parameters()))
        self.dead = []

    def run(self, *numbers, clip=None):
        for number in numbers:
            x, y = fading_batch(number)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            assert loss.dtype == torch.float32
            self.fabric.backward(loss * (torch.inf if number == BAD else 1.0))
            if clip is not None:
                self.fabric.clip_gradients(
                    self.model, self.optimizer, max_norm=clip, error_if_nonfinite=False
                )
            self.dead.append(dead_weights(self.model))
            self.optimizer.step()
        return self

    @property
    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


def by_hand(kind, steps, clip=None, **settings):
    model = Fading()
    optimizer = OPTIMIZERS[kind](model.parameters())
    scaler = gradscale.GradScaler("cpu", **settings)
    for number in range(steps):
        x, y = fading_batch(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        scaler.scale(loss * (torch.inf if number == BAD else 1.0)).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach() for p in model.parameters()]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_loop_has_the_bits_of_one_by_hand(kind, clip, layerwise):
    loop = Loop(kind, layerwise=layerwise).run(*range(6), clip=clip)
    assert same(loop.weights, by_hand(kind, 6, clip, layerwise=layerwise))


def test_a_plan_loses_no_gradient_where_one_scale_loses_some():
    assert Loop(layerwise=False).run(0, 1, 2).dead[-1] >= 3
    assert Loop(layerwise=True).run(0, 1, 2).dead[-1] == 0


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_checkpoint_with_the_scaler_in_it_resumes_bit_for_bit(tmp_path, layerwise):
    whole = Loop(layerwise=layerwise).run(*range(8))
    first = Loop(layerwise=layerwise).run(*range(5))
    state = {"model": first.model, "optimizer": first.optimizer, "scaler": first.plugin.scaler}
    first.fabric.save(tmp_path / "half.ckpt", state)
    again = Loop(layerwise=layerwise)
    state = {"model": again.model, "optimizer": again.optimizer, "scaler": again.plugin.scaler}
    again.fabric.load(tmp_path / "half.ckpt", state)
    assert same(again.run(*range(5, 8)).weights, whole.weights)
    assert again.plugin.scaler.counters == whole.plugin.scaler.counters


def test_attaching_after_setup_and_detaching():
    fabric = lightning.Fabric(accelerator="cpu", precision="16-mixed")  # the host: bfloat16
    loop = Loop(fabric=fabric)
    before = fabric.strategy.precision
    attachment = gradscale.attach(fabric, layerwise=True)
    loop.run(*range(6))
    assert same(loop.weights, by_hand("sgd", 6, layerwise=True))
    assert "Fabric: precision plugin (float16)" in repr(attachment)
    attachment.detach()
    assert fabric.strategy.precision is before is fabric._precision


def test_full_precision_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"precision='32-true'.*Fabric\(plugins="):
        gradscale.attach(lightning.Fabric(accelerator="cpu"))
