"""MONAI's `SupervisedTrainer` in mixed precision, with a scale for every part of the network.

python examples/integrations/with_monai.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from monai.engines import SupervisedTrainer
from torch import nn

import gradscale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 1, 1)).to(device)
    images = torch.randn(steps, 4, 1, 16, 16)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=[{"image": it, "label": it.clamp(min=0)} for it in images],
        network=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        loss_function=nn.MSELoss(),
        amp=True,
    )
    attachment = gradscale.attach(trainer, layerwise=True)
    print(attachment)
    trainer.run()
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
