"""What each rank of `test_lightning_sharded.py` does: a `Trainer` over a model sharded by FSDP2."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from fading import Fading, fading_batch
from gradscale.integrations.lightning import Precision

STEPS, BAD, RESUMED = 6, 3, 4
"""Steps in all; the one in which a shard holds an infinity; those before the checkpoint."""

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


class Sharded(LightningModule):
    """As Lightning's users write it: `configure_model` shards."""

    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.kind = optimizer
        self.network: nn.Module | None = None
        self.skipped: list[bool] = []

    def configure_model(self) -> None:
        """Lightning calls it again before it loads a checkpoint."""
        if self.network is None:
            torch.manual_seed(0)
            self.network = fully_shard(Fading(), mesh=self.device_mesh["data_parallel"])

    def training_step(self, *_: Any) -> Tensor:
        # By the step: Lightning goes on from the middle of an epoch with other batches.
        x, y = fading_batch(self.trainer.global_step)
        return nn.functional.cross_entropy(self.network(x).float(), y)

    def on_after_backward(self) -> None:
        first = next(self.parameters()).grad
        if self.trainer.global_step == BAD and self.global_rank == 1:
            first.to_local().view(-1)[0] = torch.inf

    def on_train_batch_end(self, *_: Any) -> None:
        self.skipped.append(self.trainer.precision_plugin.scaler.last_step.skipped)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = OPTIMIZERS[self.kind](self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def run(rank: int, optimizer: str, layerwise: bool, folder: str) -> dict[str, Any]:
    """Trains whole; then to a checkpoint, and from it in another trainer to the end."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0"}
    os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    whole = _fit(optimizer, layerwise, STEPS)
    saved = os.path.join(folder, "checkpoint")
    _fit(optimizer, layerwise, RESUMED, save=saved)
    return {"whole": whole, "resumed": _fit(optimizer, layerwise, STEPS, load=saved)}


def _fit(
    optimizer: str, layerwise: bool, steps: int, save: str | None = None, load: str | None = None
) -> dict[str, Any]:
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        plugins=Precision(layerwise=layerwise),
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Sharded(optimizer)
    trainer.fit(module, DataLoader(range(STEPS), batch_size=None), ckpt_path=load)
    if save is not None:
        trainer.save_checkpoint(save)
    scaler = trainer.precision_plugin.scaler
    tensors = [p.to_local() for p in module.parameters() if isinstance(p, DTensor)]
    latest = scaler.layerwise.tracks.latest if layerwise else None
    return {
        "weights": [tensor.detach().tolist() for tensor in tensors],
        "scale": scaler.get_scale(),
        "counters": scaler.counters,
        "skipped": module.skipped,
        "rate": trainer.optimizers[0].param_groups[0]["lr"],
        "exponents": None if latest is None else latest.plan.exponents,
    }
