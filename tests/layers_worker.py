"""A real training whose layers go to a tracker: a script for W&B, imported for the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import gradscale
from fading import Fading, fading_batch
from gradscale.metrics import WandB, layer_numbers, layers_to

Seen = dict[int, dict[str, float]]


def trained_into(sink: Any) -> Seen:
    """The numbers of every measuring step as the watch counted them; the sink has them, too."""
    model, seen = Fading(), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8)
    hear: Callable[[int, Sequence[Any]], None] = layers_to(sink)
    with gradscale.watch(model, scaler, every=2) as watch:
        watch.on_measured(hear)
        watch.on_measured(lambda step, rows: seen.update({step: layer_numbers(rows)}))
        for number in range(5):
            x, y = fading_batch(number)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        watch.wait()
    return seen


if __name__ == "__main__":
    import wandb

    settings = wandb.Settings(silent=True)
    run = wandb.init(project="layers", dir=sys.argv[1], mode="offline", settings=settings)
    seen = trained_into(WandB(commit=True))  # nobody else logs a row for each step
    run.finish()
    print("seen: " + json.dumps(seen))
