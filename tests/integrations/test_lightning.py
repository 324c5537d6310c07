"""Lightning's `Trainer` with our precision plugin: real fits on the CPU in fp16."""

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


class Module(lightning.LightningModule):
    """What a user writes; it also notes what its hooks see."""

    def __init__(self, optimizer="sgd", interval="step", manual=False, clip=None):
        super().__init__()
        self.network = Fading()
        self.kind, self.interval, self.clip = optimizer, interval, clip
        self.automatic_optimization = not manual
        self.seen, self.dead, self.rates = [], [], []

    def loss(self, batch, number):
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x).float(), y)
        return loss * (torch.inf if number == BAD else 1.0)

    def training_step(self, batch, number):
        if self.automatic_optimization:
            return self.loss(batch, number)
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch, number))
        self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()
        schedule.step()
        return None

    def on_before_optimizer_step(self, optimizer):
        gradients = [p.grad.clone() for p in self.network.parameters()]
        self.seen.append(nn.utils.get_total_norm(gradients))
        self.dead.append(dead_weights(self.network))

    def on_train_batch_end(self, *_):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.kind](self.network.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.interval},
        }


class Logger(lightning.pytorch.loggers.logger.Logger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.lines = []

    name = version = "memory"

    def log_hyperparams(self, *_, **__): ...

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))


def loader(steps):
    return torch.utils.data.DataLoader(list(map(fading_batch, range(steps))), batch_size=None)


def fit(module, plugin, steps=6, resume=None, **settings):
    settings = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **settings}
    trainer = lightning.Trainer(
        accelerator="cpu",
        plugins=plugin,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader(steps), ckpt_path=resume)
    return trainer


def by_hand(kind, steps, clip=None, **settings):
    """The same run in a loop of one's own."""
    model = Fading()
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    scaler = gradscale.GradScaler("cpu", **settings)
    for number in range(steps):
        x, y = fading_batch(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
            loss = loss * (torch.inf if number == BAD else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            scaler.clip_grad_norm_(optimizer, clip)
        scaler.step(optimizer)
        scaler.update()
        scaler.step_scheduler(schedule)
    return [p.detach() for p in model.parameters()]


def weights(module):
    return [p.detach().clone() for p in module.network.parameters()]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_fit_has_the_bits_of_a_loop_by_hand(kind, clip, layerwise):
    module = Module(kind)
    fit(module, plugins.Precision("cpu", layerwise=layerwise), gradient_clip_val=clip)
    assert same(weights(module), by_hand(kind, 6, clip, layerwise=layerwise))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_hooks_see_true_gradients_of_fused_optimizers_too(kind):
    whole = Fading()
    x, y = fading_batch(0)
    nn.functional.cross_entropy(whole(x), y).backward()
    true = nn.utils.get_total_norm([p.grad for p in whole.parameters()])
    module = Module(kind)
    fit(module, plugins.Precision("cpu"), steps=1)
    torch.testing.assert_close(module.seen[0], true, rtol=1e-2, atol=0)


def test_a_plan_loses_no_gradient_where_one_scale_loses_some():
    dead = {}
    for layerwise in (False, True):
        module = Module()
        fit(module, plugins.Precision("cpu", layerwise=layerwise), steps=3)
        dead[layerwise] = module.dead[-1]
    assert dead[False] >= 3 and dead[True] == 0


def test_a_schedule_by_the_step_waits_for_a_skipped_one_and_by_the_epoch_does_not():
    module = Module()
    fit(module, plugins.Precision("cpu"))
    assert module.rates == [1e-2 * 0.5**n for n in (1, 2, 3, 3, 4, 5)]
    module = Module(interval="epoch")
    trainer = fit(module, plugins.Precision("cpu"), steps=BAD + 1, max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-2 * 0.5**2
    assert "lr_scheduler_step" not in vars(module)


def test_the_loggers_hear_of_scale_and_skips():
    logger = Logger()
    fit(Module(), plugins.Precision("cpu"), logger=logger, log_every_n_steps=1)
    scales = [line["gradscale/scale"] for _, line in logger.lines if "gradscale/scale" in line]
    assert scales == [65536.0] * 6
    skipped = [line["gradscale/skipped"] for _, line in logger.lines if "gradscale/skipped" in line]
    assert [bool(it) for it in skipped] == [number == BAD for number in range(6)]


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_checkpoint_resumes_bit_for_bit(tmp_path, layerwise):
    settings = {"layerwise": layerwise, "growth_interval": 3}
    whole = Module("adamw-fused")
    fit(whole, plugins.Precision("cpu", **settings), max_epochs=2)
    trainer = fit(Module("adamw-fused"), plugins.Precision("cpu", **settings))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again, plugin = Module("adamw-fused"), plugins.Precision("cpu", **settings)
    fit(again, plugin, max_epochs=2, resume=tmp_path / "half.ckpt")
    assert same(weights(again), weights(whole))
    assert plugin.scaler.counters.steps == 12


def test_a_checkpoint_of_the_hosts_own_plugin_is_taken_over(tmp_path):
    own = lightning.pytorch.plugins.MixedPrecision(
        "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**7)
    )
    trainer = fit(Module(), own, steps=2)
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    plugin = plugins.Precision("cpu")
    fit(Module(), plugin, steps=2, max_epochs=2, resume=tmp_path / "theirs.ckpt")
    assert plugin.scaler.get_scale() == 2.0**7


def test_manual_optimization_clips_true_gradients():
    module = Module(manual=True, clip=0.01)
    fit(module, plugins.Precision("cpu"), steps=3)
    assert same(weights(module), by_hand("sgd", 3, 0.01))


def test_gradients_accumulate():
    module, plugin = Module(), plugins.Precision("cpu")
    fit(module, plugin, accumulate_grad_batches=3)
    assert plugin.scaler.counters.steps == 2 and plugin.scaler.counters.skipped == 1


def test_attaching_turns_the_hosts_bfloat16_into_float16_and_detaching_back():
    trainer = lightning.Trainer(
        accelerator="cpu", precision="16-mixed", logger=False, max_epochs=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = trainer.precision_plugin
    attachment = gradscale.attach(trainer, layerwise=True)
    module = Module()
    trainer.fit(module, loader(6))
    assert same(weights(module), by_hand("sgd", 6, layerwise=True))
    assert "Trainer: precision plugin (float16)" in repr(attachment)
    attachment.detach()
    assert trainer.precision_plugin is before


def test_full_precision_is_refused_with_the_way_out():
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"precision='32-true'.*plugins=gradscale.integrations"):
        gradscale.attach(trainer)
