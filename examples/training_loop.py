"""A whole training loop: autocast, accumulation, clipping, schedule, checkpoint, resume.

python examples/training_loop.py --steps 200
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscale

CHECKPOINT = Path("checkpoint.pt")
ACCUMULATE = 4


def make_batch(device: str) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(64, 16, device=device)
    return inputs, inputs.cumsum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # CPUs multiply bfloat16 fast and float16 slowly. bfloat16 has float32's range: there the scaler
    # changes no bit, and the loop is the same.
    half = torch.float16 if device == "cuda" else torch.bfloat16
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    scaler = gradscale.GradScaler(device)
    scaler.name_parameters(model)  # so that a skipped step names the layer
    first = 0

    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        scaler.load_state_dict(saved["scaler"])
        first = saved["step"]

    for step in range(first, steps):
        optimizer.zero_grad()
        for _ in range(ACCUMULATE):
            inputs, targets = make_batch(device)
            with torch.autocast(device, half):
                loss = nn.functional.mse_loss(model(inputs), targets) / ACCUMULATE
            scaler.scale(loss).backward()

        # Divide before clipping: the threshold is meant for true gradients.
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scaler.step_scheduler(schedule)  # moves only if the optimizer did

        if scaler.last_step.skipped:
            print(f"step {step}: {scaler.last_step}")
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(
                f"step {step + 1}: loss {loss.item() * ACCUMULATE:.4f}, "
                f"scale {scaler.get_scale():g}"
            )
            # The scaler belongs in the checkpoint: without it the search for a scale starts again.
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "step": step + 1,
            }
            torch.save(state, CHECKPOINT)

    print(f"{scaler.counters.skipped} of {scaler.counters.steps} steps were skipped")


if __name__ == "__main__":
    main()
