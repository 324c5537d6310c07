"""Trains with the real package of a host that `make test-hosts` keeps apart: its name is given.

They ask for a torchvision or a torchaudio that fits torch, and there is none for torch's build for
the CPU. The Python code of both is there, without their libraries, which no loop asks for.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import gradscale
from fading import Fading, dead_weights, fading_batch

BAD = 3
"""The step whose loss is not finite."""


def declare_torchvision() -> torch.library.Library:
    """Names the two operators that torchvision registers a fake for even without its library."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def timm() -> dict[str, Any]:
    """The call of timm's train script."""
    from timm.utils import NativeScaler

    import gradscale.integrations.timm

    loss_scaler, model = NativeScaler(), Fading()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    attachment = gradscale.attach(loss_scaler, layerwise=True)
    dead = []
    for number in range(6):
        x, y = fading_batch(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss = loss * (torch.inf if number == BAD else 1.0)
        given = {"clip_grad": 1.0, "clip_mode": "norm", "parameters": model.parameters()}
        loss_scaler(loss, optimizer, **given)
        dead.append(dead_weights(model))
    saved = loss_scaler.state_dict()
    again = gradscale.integrations.timm.NativeScaler(layerwise=True)
    again.load_state_dict(saved)
    return told(attachment, model) | {
        "dead": dead[-1],
        "resumed": again._scaler.counters == attachment.scaler.counters,
    }


def open_clip() -> dict[str, Any]:
    """`train_one_epoch` of a small CLIP on six random batches, one of them not finite."""
    from open_clip import CLIP, ClipLoss
    from open_clip_train.train import train_one_epoch

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = CLIP(32, vision, text, output_dict=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    images = torch.randn(6, 4, 3, 32, 32)
    images[BAD] = torch.inf
    batches = Batches((image, torch.randint(1, 63, (4, 8))) for image in images)
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    on = {"device": "cpu", "precision": "amp", "accum_freq": 1, "batch_size": 4, "world_size": 1}
    off = dict.fromkeys(("distill", "horovod", "wandb", "save_logs", "log_local", "rank"), 0)
    off |= {"local_rank": 0, "skip_scheduler": True, "log_every_n_steps": 1}
    settings = SimpleNamespace(**on, **off, grad_clip_norm=1.0)
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, scaler, None, None, settings)
    return told(SimpleNamespace(scaler=scaler), model)


class Batches(list):  # pyright: ignore[reportMissingTypeArgument]
    """What open_clip's loop asks of a loader."""

    num_samples = 24
    num_batches = 6


def speechbrain() -> dict[str, Any]:
    """`Brain.fit` with a checkpointer."""
    import speechbrain as sb

    class Classifier(sb.Brain):
        def compute_forward(self, batch, stage):
            return self.modules.network(batch[0])

        def compute_objectives(self, predictions, batch, stage):
            bad = stage == sb.Stage.TRAIN and self.step == BAD + 1
            loss = nn.functional.cross_entropy(predictions.float(), batch[1])
            return loss * (torch.inf if bad else 1.0)

    folder = tempfile.mkdtemp()
    checkpointer = sb.utils.checkpoints.Checkpointer(folder)
    brain = Classifier(
        {"network": Fading()},
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        run_opts={"device": "cpu"},  # on which it refuses fp16
        checkpointer=checkpointer,
    )
    attachment = gradscale.attach(brain, layerwise=True)
    batches = torch.utils.data.DataLoader([fading_batch(n) for n in range(6)], batch_size=None)
    brain.fit(range(1), batches, progressbar=False)
    checkpointer.save_checkpoint()
    files = {path.name for path in Path(folder).rglob("*.ckpt")}
    return told(attachment, brain.modules) | {"saved": "scaler.ckpt" in files}


def ultralytics() -> dict[str, Any]:
    """A `ClassificationTrainer` on pictures of two colours."""
    from PIL import Image
    from ultralytics.models.yolo.classify import ClassificationTrainer

    folder = Path(tempfile.mkdtemp())
    for split in ("train", "val"):
        for color in ("red", "blue"):
            (folder / "data" / split / color).mkdir(parents=True)
            for number in range(12 if split == "train" else 2):
                picture = Image.new("RGB", (32, 32), color)
                picture.save(folder / "data" / split / color / f"{number}.png")
    settings = {"model": "yolo11n-cls.yaml", "data": str(folder / "data"), "epochs": 1}
    settings |= {"imgsz": 32, "batch": 4, "nbs": 4, "device": "cpu", "workers": 0, "plots": False}
    trainer = ClassificationTrainer(overrides=settings | {"project": str(folder), "val": False})
    attachment = gradscale.attach(trainer)
    averaged, number = [], iter(range(100))

    def spoil(host: Any) -> None:
        # Ultralytics scales `trainer.loss` after the forward pass: a weight is spoilt before it.
        if next(number) == BAD:
            first = next(iter(host.model.parameters()))
            first.register_hook(once(lambda gradient: gradient * torch.inf))

    trainer.add_callback("on_train_batch_start", spoil)
    trainer.add_callback("on_train_batch_end", lambda host: averaged.append(host.ema.updates))
    saved = []

    def look(host: Any) -> None:  # at the end it strips what a resume needs
        saved.append("gradscale" in torch.load(host.last, weights_only=False)["scaler"])

    trainer.add_callback("on_model_save", look)
    trainer.train()
    return told(attachment, trainer.model) | {"averaged": averaged, "saved": saved[0]}


def once(change: Any) -> Any:
    """A hook that works the first time."""
    calls = iter(range(10**6))
    return lambda gradient: change(gradient) if next(calls) == 0 else gradient


def told(attachment: Any, model: nn.Module) -> dict[str, Any]:
    """What every host must come to."""
    counters = attachment.scaler.counters
    return {
        "steps": counters.steps,
        "reasons": dict(counters.reasons),
        "finite": all(bool(p.isfinite().all()) for p in model.parameters()),
        "said": repr(attachment),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep = declare_torchvision()
    print("told: " + json.dumps(globals()[sys.argv[1]]()))
