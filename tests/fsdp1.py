"""A model under FSDP1 on a CPU, a flat parameter for each linear layer."""

from __future__ import annotations

import torch
from torch import nn


def under_fsdp1(model: nn.Module, *, use_orig_params: bool) -> nn.Module:
    """The model in shards; called on every rank."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        device_id=torch.device("cpu"),
        use_orig_params=use_orig_params,
    )
