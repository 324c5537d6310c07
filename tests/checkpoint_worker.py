"""Training that is saved by ranks and goes on elsewhere."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from fading import Fading, fading_batch
from gradscale import GradScaler

Seen = tuple[float, tuple[int, ...], list[list[float]]]
STEPS = 5


class Run:
    """A float16 training run, layer-wise."""

    def __init__(self) -> None:
        self.model = Fading()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2)
        self.scaler = GradScaler("cpu", layerwise=True)

    def train(self, first: int, count: int) -> None:
        for step in range(first, first + count):
            x, y = fading_batch(step)
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(self.model(x).float(), y)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def seen(self) -> Seen:
        assert self.scaler.layerwise is not None
        track = self.scaler.layerwise.tracks.latest
        assert track is not None
        weights = [p.detach().flatten().tolist() for p in self.model.parameters()]
        return self.scaler.get_scale(), tuple(track.plan.exponents), weights


def saved_on_ranks(rank: int, folder: str) -> Seen:
    """Trains, saves with all ranks, trains on."""
    run = Run()
    run.train(0, STEPS)
    state = {"model": run.model.state_dict(), "scaler": run.scaler}
    dcp.save(state, checkpoint_id=folder)
    dist.barrier()
    run.train(STEPS, 1)
    return run.seen()


def continued(folder: str, trained: int = 0) -> Seen:
    """A fresh run of one process, perhaps with steps of its own, that loads and trains on."""
    run = Run()
    run.train(40, trained)
    model = run.model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.load({"model": model, "scaler": run.scaler}, checkpoint_id=folder)
    run.model.load_state_dict(model)
    run.train(STEPS, 1)
    return run.seen()
