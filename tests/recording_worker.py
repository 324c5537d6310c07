"""What each rank of `recording/test_ranks.py` does, in a module that spawned processes import."""

import torch
from torch.nn.parallel import DistributedDataParallel

import gradscale


def recorded(rank, path):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = gradscale.GradScaler("cpu", process_group=torch.distributed.group.WORLD)
    with (
        gradscale.watch(model, scaler, every=2) as watch,
        gradscale.Recorder(path, scaler, watch, amax=True, exponents=True) as recorder,
    ):
        for step in range(6):
            optimizer.zero_grad()
            inputs = torch.full((2, 4), float(rank + 1))
            if step == 3 and rank == 1:
                inputs = inputs * torch.nan
            loss = model(inputs).square().mean()
            recorder.note_loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return scaler.get_scale(), [p.tolist() for p in model.parameters()]
