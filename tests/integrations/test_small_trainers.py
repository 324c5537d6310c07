"""MONAI, Ignite, mmengine, skorch: real packages, real training runs on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, fading_batch
from hosts import host

monai = host("monai.engines")
ignite = host("ignite.engine")
mmengine = host("mmengine.optim.optimizer.amp_optimizer_wrapper")
skorch = host("skorch")
accelerate = host("accelerate")
hf = host("skorch.hf")

BAD = 3


class Batches:
    """Six batches, the fourth of which has a loss that is not finite."""

    def __len__(self):
        return 6

    def __iter__(self):
        for number in range(6):
            x, y = fading_batch(number)
            yield {"image": x, "label": y, "bad": number == BAD}


def monai_trainer(model, **settings):
    settings = {"amp": True, **settings}
    return monai.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=Batches(),
        network=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-2),
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=lambda batch, device, non_blocking, **_: (
            batch["image"],
            batch["label"],
        ),
        **settings,
    )


def test_monai_makes_a_scaler_at_each_run_and_trains_with_ours():
    model = Fading()
    trainer = monai_trainer(model)
    before = model.state_dict()["0.weight"].clone() if "0.weight" in model.state_dict() else None
    attachment = gradscale.attach(trainer, layerwise=True)
    trainer.run()
    assert trainer.scaler is attachment.scaler
    assert attachment.scaler.counters.steps == 6 and attachment.scaler.counters.skipped == 0
    assert before is None or not torch.equal(before, model.state_dict()["0.weight"])
    trainer.state.max_epochs = 2
    trainer.run()
    assert attachment.scaler.counters.steps == 12
    attachment.detach()
    trainer.state.max_epochs = 3
    trainer.run()
    assert trainer.scaler is not attachment.scaler and attachment.scaler.counters.steps == 12


def test_monai_without_amp_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"SupervisedTrainer.*`amp=True`"):
        gradscale.attach(monai_trainer(Fading(), amp=False))


def test_ignite_takes_a_scaler_as_an_argument_and_nowhere_else(tmp_path):
    model = Fading()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = gradscale.GradScaler("cpu", layerwise=True)

    def loss_fn(out, y):
        bad = trainer.state.iteration == BAD + 1
        return nn.functional.cross_entropy(out.float(), y) * (torch.inf if bad else 1.0)

    trainer = ignite.create_supervised_trainer(
        model, optimizer, loss_fn, amp_mode="amp", scaler=scaler
    )
    trainer.run([fading_batch(number) for number in range(6)])
    assert scaler.counters.reasons == {"nonfinite_loss": 1} and scaler.counters.steps == 6
    with pytest.raises(TypeError, match=r"attach\(Engine\).*scaler=gradscale.GradScaler"):
        gradscale.attach(trainer)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """mmengine refuses mixed precision without a GPU before it looks at anything."""
    monkeypatch.setattr(mmengine, "is_cuda_available", lambda: True)


@pytest.mark.parametrize("loss_scale", ["dynamic", 512.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_mmengines_wrapper_trains_and_saves(on_a_cpu, loss_scale, accumulate):
    model = Fading()
    wrapper = mmengine.AmpOptimWrapper(
        loss_scale=loss_scale,
        dtype="bfloat16",  # the only one that its autocast has on a CPU
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-2),
        clip_grad={"max_norm": 1.0},
        accumulative_counts=accumulate,
    )
    attachment = gradscale.attach(wrapper, layerwise=True, init_scale=1024.0)
    for number in range(6):
        x, y = fading_batch(number)
        with wrapper.optim_context(model):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        wrapper.update_params(loss * (torch.inf if number == BAD else 1.0))
    assert attachment.scaler.counters.steps == 6 // accumulate
    assert attachment.scaler.counters.skipped == 1
    wrapper.load_state_dict(wrapper.state_dict())
    assert attachment.scaler.counters.steps == 6 // accumulate


def test_skorch_trains_with_the_accelerator_that_it_was_given():
    class Net(hf.AccelerateMixin, skorch.NeuralNetClassifier):
        pass

    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(mixed_precision="fp16", cpu=True)
    net = Net(
        Fading,
        criterion=nn.CrossEntropyLoss,
        accelerator=accelerator,
        max_epochs=2,
        verbose=0,
        train_split=None,
        device=None,
    )
    attachment = gradscale.attach(net, layerwise=True)
    x, y = fading_batch(0)
    net.fit(x, y)
    assert attachment.scaler.counters.steps == 2
    plain = skorch.NeuralNetClassifier(Fading)
    with pytest.raises(TypeError, match=r"AccelerateMixin"):
        gradscale.attach(plain)
