"""Ignite takes a scaler as an argument, so it takes this one.

python examples/integrations/with_ignite.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

import gradscale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    trainer = create_supervised_trainer(
        model, optimizer, nn.functional.mse_loss, amp_mode="amp", scaler=scaler
    )

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scaler.step_scheduler(schedule))

    inputs = torch.randn(steps, 64, 16)
    trainer.run([(x, x.cumsum(1)) for x in inputs])
    print(f"loss {trainer.state.output:.4f}, {scaler.counters}")
    print(scaler.layerwise.report())


if __name__ == "__main__":
    main()
