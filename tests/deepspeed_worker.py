"""What each rank of `test_deepspeed.py` does: a real engine on the CPU."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gradscale
from fading import Fading, fading_batch

BAD = 3


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        mode: ``"autocast"`` or ``"fp16"``.
        stage: of ZeRO.
        layerwise: as in `GradScaler`.
        ours: whether ours is attached.
        overflow: whether step 3 overflows on the last rank, instead of a loss that is not finite.
    """

    mode: str
    stage: int
    layerwise: bool = False
    ours: bool = True
    overflow: bool = False


def engine_of(case: Case) -> Any:
    """DeepSpeed's engine of a network of 13 layers."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(dist.get_rank()))
    os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE=str(dist.get_world_size()))
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # Else it compiles an extension for shared memory, which takes minutes.
    deepspeed.ops.__compatible_ops__.clear()
    # It computes in float16 on a CPU, but refuses to try.
    get_accelerator().is_fp16_supported = lambda: True
    mode = {"torch_autocast": {"enabled": True, "dtype": "float16"}}
    if case.mode == "fp16":
        mode = {"fp16": {"enabled": True, "initial_scale_power": 16}}
    if case.mode == "float32":
        mode = {}
    config = {
        "train_micro_batch_size_per_gpu": 16,
        "zero_optimization": {"stage": case.stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        **mode,
    }
    model = Fading()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    return deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=config
    )[0]


def train(engine: Any, case: Case, steps: range) -> dict[str, Any]:
    """What is seen of each step."""
    seen: dict[str, Any] = {"norms": []}
    for number in steps:
        x, y = fading_batch(number)
        out = engine(x.half() if case.mode == "fp16" else x)
        loss = nn.functional.cross_entropy(out.float(), y)
        bad = number == BAD
        if bad and case.overflow and dist.get_rank() == dist.get_world_size() - 1:
            loss = loss * 2.0**110
        engine.backward(loss * (torch.inf if bad and not case.overflow else 1.0))
        engine.step()
        norm = engine.get_global_grad_norm()
        seen["norms"].append(None if norm is None else float(norm))
    return seen


def weights(engine: Any) -> list[Tensor]:
    """Of the whole network, whoever holds them."""
    import deepspeed

    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return [p.detach().float().clone() for p in parameters]


def run(rank: int, case: Case) -> dict[str, Any]:
    """Six steps, a checkpoint after the fifth, the sixth again from there."""
    engine = engine_of(case)
    if not case.ours:
        return train(engine, case, range(6))
    attachment = gradscale.attach(engine, layerwise=case.layerwise)
    scaler = attachment.scaler
    seen = {"said": repr(attachment), **train(engine, case, range(5))}
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        dist.broadcast_object_list(shared)
        engine.save_checkpoint(shared[0])
        later = train(engine, case, range(5, 6))
        ended = weights(engine)
        seen |= {"rate": engine.get_lr()[0], **facts(engine, scaler)}
        seen["finite"] = all(bool(it.isfinite().all()) for it in ended)
        seen["norms"] += later["norms"]
        other = engine_of(case)
        resumed = gradscale.attach(other, layerwise=case.layerwise)
        dist.barrier()
        other.load_checkpoint(shared[0])
        train(other, case, range(5, 6))
        same = all(map(torch.equal, weights(other), ended))
        seen["resumed"] = facts(other, resumed.scaler) | {"same": same}
        dist.barrier()
    attachment.detach()
    seen["detached"] = repr(attachment)
    return seen


def facts(engine: Any, scaler: gradscale.GradScaler) -> dict[str, Any]:
    """What the scaler and the engine say of the run."""
    return {
        "scale": scaler.get_scale(),
        "counters": scaler.counters,
        "skipped": engine.skipped_steps,
        "groups": len(set(scaler.layerwise.tracks.latest.plan.exponents))
        if scaler.layerwise is not None and scaler.layerwise.tracks.latest is not None
        else 1,
    }


def refusals(rank: int) -> list[str]:
    """What is said of engines that cannot have one."""
    said = []
    for case in (Case("fp16", 0), Case("float32", 1)):
        try:
            gradscale.attach(engine_of(case))
        except ValueError as error:
            said.append(str(error))
    for stage, settings in ((1, {"policy": gradscale.Band()}), (3, {"layerwise": True})):
        try:
            gradscale.attach(engine_of(Case("autocast", stage)), **settings)
        except ValueError as error:
            said.append(str(error))
    return said
