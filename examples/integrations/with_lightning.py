"""A Lightning `Trainer` in float16, with a scale for every part of the network.

python examples/integrations/with_lightning.py --steps 200 --devices 2
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradscale.integrations.lightning import Precision


class Sums(LightningModule):
    """Learns running sums. The fused optimizer is clipped, which Lightning alone refuses."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.network = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def training_step(self, inputs: Tensor, number: int) -> Tensor:
        loss = nn.functional.mse_loss(self.network(inputs), inputs.cumsum(1))
        if number == 1 and self.global_rank == 0:
            loss = loss * torch.inf  # one bad batch, on one rank only
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    plugin = Precision(layerwise=True)
    trainer = Trainer(
        plugins=plugin,
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        max_steps=arguments.steps,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        enable_progress_bar=False,
    )
    data = DataLoader(torch.randn(64 * arguments.steps * arguments.devices, 16), batch_size=64)
    model = Sums(arguments.steps)
    trainer.fit(model, data)
    trainer.save_checkpoint("lightning.ckpt")  # holds policy, counters and plan

    held = trainer.lr_scheduler_configs[0].scheduler.last_epoch
    print(f"rank {trainer.global_rank}: {plugin.scaler.counters}, {held} steps of the schedule")
    trainer.strategy.barrier()


if __name__ == "__main__":
    main()
