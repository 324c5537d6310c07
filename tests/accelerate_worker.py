"""What each rank of `test_accelerate_sharded.py` does: Accelerate with its FSDP plugins."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import gradscale
from fading import Fading, fading_batch

BAD = 3
"""The step in which one rank's shard holds an infinity."""

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        version: of FSDP.
        layerwise: as in `GradScaler`.
        optimizer: one of `OPTIMIZERS`.
        attach: ``"before"`` or ``"after"`` prepare.
        torchs: whether torch's own scaler is there in place of ours, as Accelerate would make it.
    """

    version: int
    layerwise: bool = False
    optimizer: str = "adamw"
    attach: str = "before"
    torchs: bool = False


class Run:
    """A loop as Accelerate's users write it, each rank with batches of its own."""

    def __init__(self, case: Case) -> None:
        self.accelerator = accelerator_of(case.version)
        attachments = []
        if case.torchs:
            self.accelerator.scaler = torchs_scaler(case.version)
            self.accelerator.native_amp = True
        elif case.attach == "before":
            attachments.append(self.attach(case))
        model = Fading()
        if case.version == 1:  # which puts other parameters in the place of the model's
            model = self.accelerator.prepare(model)
        plain = OPTIMIZERS[case.optimizer](model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(plain, step_size=1, gamma=0.5)
        given = (plain, schedule) if case.version == 1 else (model, plain, schedule)
        *shard, self.optimizer, self.schedule = self.accelerator.prepare(*given)
        self.model = shard[0] if shard else model
        if case.attach == "after":
            attachments.append(self.attach(case))
        self.attachment = attachments[0] if attachments else None
        self.norms: list[float] = []
        self.skipped: list[bool] = []

    def attach(self, case: Case) -> Any:
        return gradscale.attach(self.accelerator, layerwise=case.layerwise, init_scale=2.0**14)

    def run(self, steps: range) -> Run:
        for number in steps:
            x, y = fading_batch(2 * number + dist.get_rank())
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.accelerator.backward(loss)
            if number == BAD and dist.get_rank() == dist.get_world_size() - 1:
                spoil(self.model)
            self.norms.append(float(self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)))
            self.optimizer.step()
            self.skipped.append(self.accelerator.optimizer_step_was_skipped)
            self.schedule.step()
            self.optimizer.zero_grad()
        return self

    @property
    def weights(self) -> list[Tensor]:
        return [local(p).detach().clone() for p in self.model.parameters()]


def accelerator_of(version: int) -> Any:
    """An `Accelerator` with the plugin, which on a CPU it would leave aside without a word."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks)
    # Asked for, and not used: the ranks have met already.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, state

    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Linear"],
        state_dict_type="SHARDED_STATE_DICT",
    )
    accelerator = Accelerator(mixed_precision="fp16", cpu=True, fsdp_plugin=plugin)
    # What `AcceleratorState` does of its own accord where there are several GPUs.
    plugin.set_mixed_precision("fp16")
    accelerator.state.distributed_type = DistributedType.FSDP
    state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    # FSDP1 takes a CPU without a number only.
    accelerator.state.device = torch.device("cpu")
    state.PartialState._shared_state["device"] = torch.device("cpu")
    return accelerator


def torchs_scaler(version: int) -> torch.amp.GradScaler:
    """The scaler that Accelerate makes for the plugin on a GPU."""
    if version == 2:
        return torch.amp.GradScaler("cpu", init_scale=2.0**14)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler("cpu", init_scale=2.0**14)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spoil(model: nn.Module) -> None:
    """An infinity in the first gradient of which this rank holds a part."""
    for parameter in model.parameters():
        if parameter.grad is not None and local(parameter.grad).numel():
            local(parameter.grad).view(-1)[0] = torch.inf
            return


def run(rank: int, case: Case) -> dict[str, Any]:
    """Six steps, a checkpoint after four of them, and a second run that goes on from there."""
    first = Run(case).run(range(4))
    shared = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(shared)
    first.accelerator.save_state(shared[0])
    seen = seen_of(first.run(range(4, 6)))
    again = Run(case)
    if case.version == 1:  # whose files bring no moments into an optimizer that has none yet
        again.run(range(1))
    again.accelerator.load_state(shared[0])
    again.run(range(4, 6))
    seen["resumed"] = seen_of(again)
    same = zip(first.weights, again.weights, strict=True)
    seen["resumed"]["same"] = all(torch.equal(one, other) for one, other in same)
    if first.attachment is not None:
        first.attachment.detach()
        seen["detached"] = repr(first.attachment)
    return seen


def seen_of(run: Run) -> dict[str, Any]:
    """What a rank can tell of its run."""
    scaler = run.accelerator.scaler
    ours = isinstance(scaler, gradscale.GradScaler)
    plan = scaler.layerwise.tracks.latest.plan if ours and scaler.layerwise else None
    return {
        "model": type(run.model).__name__,
        "sharded": sum(w.numel() for w in run.weights)
        < sum(p.numel() for p in Fading().parameters()),
        "norms": run.norms,
        "skipped": run.skipped,
        "rate": run.schedule.get_last_lr()[0],
        "scale": scaler.get_scale(),
        "counters": scaler.counters if ours else None,
        "exponents": None if plan is None else plan.exponents,
        "finite": all(bool(weight.isfinite().all()) for weight in run.weights),
        "said": repr(run.attachment),
    }
