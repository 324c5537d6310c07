"""What DistributedDataParallel must find, checked in the first forward pass that it runs.

There, because it is where DDP first meets a converted model, and where all of its ranks are: what
one of them has to refuse, all refuse, and none waits for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradscale.half.masters import Masters, other_weights
from gradscale.ranks import agreed_index, distributed, mesh_groups

_NAMES = {torch.float16: "Half", torch.bfloat16: "BFloat16"}


def check_under_ddp(
    ddp: DistributedDataParallel, model: nn.Module, masters: Sequence[Masters]
) -> None:
    """Refuses a model that was wrapped before it was converted, or whose ranks differ.

    Args:
        ddp: the DistributedDataParallel whose forward pass is running.
        model: converted.
        masters: the model's.
    """
    formats = {link.format for m in masters for link in m.links if link.parameter.requires_grad}
    buckets = cast("str | None", ddp._get_ddp_logging_data().get("dtypes"))
    if buckets is not None and any(_NAMES[format] not in buckets for format in formats):
        raise wrapped_before(type(model).__name__)
    if ddp.module is not model:
        return  # not all ranks need run it in the same pass
    parameters = list(model.parameters())
    if distributed() and parameters:
        apart = any(m.of_another_rank for m in masters)
        if agreed_index(int(apart), mesh_groups(ddp.process_group), parameters[0]):
            raise other_weights()


def wrapped_before(said: str) -> RuntimeError:
    """The error of a model that DDP knew in float32."""
    return RuntimeError(
        f"`half_precision({said}, optimizer)`: DDP has made its buckets for float32 gradients. "
        "Convert first, then wrap: `half_precision(model, optimizer)`, "
        "`DistributedDataParallel(model)`."
    )
