"""Accelerate with a scale for every part of the network, resumed from its own checkpoint.

accelerate launch examples/integrations/with_accelerate.py --steps 200
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import gradscale

CHECKPOINT = Path("accelerate-checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="fp16", gradient_accumulation_steps=2)
    attachment = gradscale.attach(accelerator, layerwise=True)
    accelerator.print(attachment)

    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    if CHECKPOINT.exists():
        accelerator.load_state(str(CHECKPOINT))

    for step in range(steps):
        inputs = torch.randn(64, 16, device=accelerator.device)
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), inputs.cumsum(1))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and accelerator.optimizer_step_was_skipped:
            accelerator.print(f"step {step}: {attachment.scaler.last_step}")

    accelerator.save_state(str(CHECKPOINT))
    accelerator.print(f"loss {loss.item():.4f}, {attachment.scaler.counters}")


if __name__ == "__main__":
    main()
