"""A fastai `Learner` in float16: `to_fp16()` as always, then one line.

python examples/integrations/with_fastai.py --steps 4
"""

from __future__ import annotations

import argparse

import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

import gradscale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="epochs")
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    rows = [(x, x.cumsum(0)) for x in torch.randn(256, 16)]
    loaders = DataLoaders(DataLoader(rows, bs=32, shuffle=True), DataLoader(rows[:64], bs=32))
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    callbacks = [MixedPrecision(), GradientClip(1.0)]  # MixedPrecision() is what to_fp16() adds
    learner = Learner(loaders, model, loss_func=nn.MSELoss(), cbs=callbacks)
    attachment = gradscale.attach(learner, layerwise=True)
    print(attachment)
    with learner.no_bar():
        learner.fit(steps, 1e-2)
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
