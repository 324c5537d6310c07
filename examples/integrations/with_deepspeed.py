"""DeepSpeed, ZeRO 2 under torch's autocast in float16.

deepspeed examples/integrations/with_deepspeed.py --steps 200
"""

from __future__ import annotations

import argparse
import os

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

import gradscale

CONFIG = {
    "train_micro_batch_size_per_gpu": 64,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "torch_autocast": {"enabled": True, "dtype": "float16"},
    "gradient_clipping": 1.0,
}


def begin_alone_on_a_cpu() -> None:
    """What the launcher does on a machine with GPUs."""
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    deepspeed.ops.__compatible_ops__.clear()  # else it compiles one for shared memory, for minutes
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--local_rank", type=int, default=0)
    steps: int = parser.parse_args().steps

    if not torch.cuda.is_available():
        begin_alone_on_a_cpu()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    attachment = gradscale.attach(engine, layerwise=True)
    print(attachment)

    for step in range(steps):
        inputs = torch.randn(64, 16, device=engine.device)
        loss = nn.functional.mse_loss(engine(inputs).float(), inputs.cumsum(1))
        engine.backward(loss)
        engine.step()
        if attachment.scaler.last_step.skipped:
            print(f"step {step}: {attachment.scaler.last_step}")
    engine.save_checkpoint("deepspeed-checkpoint")  # scale, counters and plan are in it
    print(f"loss {loss.item():.4f}, norm {engine.get_global_grad_norm():.3f}")
    print(attachment.scaler.counters)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
