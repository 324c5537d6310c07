"""The actor of a reinforcement learner in float16 under FSDP2, two processes, no trainer.

python examples/integrations/rl_fsdp2.py --steps 40

One bad advantage on one rank is a step that all ranks skip; a moving average and a schedule wait
for it, the scaler is in the checkpoint, and the rollout's probabilities are held against ours.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import gradscale

BAD = 1


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, actions[:, None])[:, 0]


def rollout(model: nn.Module, states: Tensor, actions: Tensor, dtype: torch.dtype) -> Tensor:
    """What an inference engine in this format says of the same actions."""
    engine = network().to(dtype)
    engine.load_state_dict({name: it.full_tensor() for name, it in model.state_dict().items()})
    with torch.no_grad():
        return log_probability(engine(states.to(dtype)), actions)


def train(rank: int, steps: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.manual_seed(0)
    half = MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = fully_shard(network(), mesh=mesh, mp_policy=half)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = [p.detach().clone() for p in model.parameters()]
    # Sharded parameters bring their ranks along: an infinity on one rank is one on all.
    scaler = gradscale.GradScaler("cpu", policy=gradscale.presets.verl())
    if rank == 0:
        scaler.on_skip(lambda outcome: print(f"skipped: {outcome}"))

    torch.manual_seed(rank)
    for step in range(steps):
        states = torch.randn(256, 16)
        with torch.no_grad():
            actions = torch.distributions.Categorical(logits=model(states).float()).sample()
        reward = (actions == states[:, :8].argmax(-1)).float()
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        if step == BAD and rank == 1:
            advantage[0] = torch.inf
        bf16, fp16 = (rollout(model, states, actions, it) for it in (torch.bfloat16, torch.float16))

        trained = log_probability(model(states), actions)
        ratio = (trained - fp16).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        scaler.scale(loss).backward()
        scaler.clip_grad_norm_(optimizer, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        scaler.step_scheduler(schedule)
        if not scaler.last_step.skipped:
            for kept, parameter in zip(average, model.parameters(), strict=True):
                kept.lerp_(parameter.detach(), 0.1)
        if rank == 0 and step % max(1, steps // 4) == 0:
            off = [f"{(trained - it).abs().max():.1e}" for it in (bf16, fp16)]
            print(f"step {step}: reward {reward.mean():.2f}, rollout off by {off} (bf16, fp16)")

    weights, moments = get_state_dict(model, optimizer)
    saved = f"{folder}/checkpoint"
    dcp.save({"model": weights, "moments": moments, "scaler": scaler}, checkpoint_id=saved)
    again = gradscale.GradScaler("cpu", policy=gradscale.presets.verl())
    dcp.load({"scaler": again}, checkpoint_id=saved)
    print(f"rank {rank}: {again.counters}, {schedule.last_epoch} steps of the schedule")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    with tempfile.TemporaryDirectory() as shared:
        torch.multiprocessing.spawn(train, (parser.parse_args().steps, shared), nprocs=2)
