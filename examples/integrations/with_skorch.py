"""A skorch net in float16: attach to its accelerator, or to the net, which is the same.

python examples/integrations/with_skorch.py --steps 20
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from skorch import NeuralNetRegressor
from skorch.hf import AccelerateMixin
from torch import nn

import gradscale


class AcceleratedNet(AccelerateMixin, NeuralNetRegressor):
    """As skorch's documentation has it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="epochs")
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="fp16", cpu=not torch.cuda.is_available())
    net = AcceleratedNet(
        nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)),
        accelerator=accelerator,
        optimizer=torch.optim.AdamW,
        lr=1e-2,
        max_epochs=steps,
        train_split=None,
        device=None,
    )
    attachment = gradscale.attach(net, layerwise=True)
    print(attachment)
    inputs = torch.randn(512, 16)
    net.fit(inputs, inputs.cumsum(1))
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
